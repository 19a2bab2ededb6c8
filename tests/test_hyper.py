"""Declarations of hyper-parameters, in classes that are not the library's."""

import copy
import inspect
import linecache
import pathlib
import pickle
import re
import traceback

import numpy as np
import pytest

import nbopt
from nbopt import checks, errors, optimizers
from nbopt.optimizers.hyper import REQUIRED, hyper, torch_words


class Blend(nbopt.Optimizer):
    """A blend of two directions.

    Notes
    -----
    For tests.
    """

    state_names = ("mean",)

    learning_rate = hyper(0.5)
    share = hyper(REQUIRED, checks.fraction, "How much of the mean is in it.")
    power = hyper(2.0, doc="Never checked.")
    arguments = ("share", "learning_rate", ..., "name", "*", "schedule")

    def rule(self, step, param, grad, mean):
        """One step; see the class."""
        mean[:] = self.share * mean + (1.0 - self.share) * grad
        param[:] = param - step.lr * mean**self.power


class Deeper(Blend):
    """One with another default, and one more hyper-parameter."""

    share = hyper(0.25)
    extra = hyper(1, checks.count)


class Written(Deeper):
    """One with a constructor of its own, and a declaration."""

    own = hyper(3.0, checks.positive)

    def __init__(self, own=7.0, name=None):
        super().__init__(0.75, extra=2, name=name)
        self.own = own


class Below(Written):
    """One that is made again, below a constructor that was written."""

    last = hyper(0.0, checks.non_negative)


def test_order():
    """Arguments stand in the order that the class gives. Three dots stand for the others of its own."""
    assert (
        str(inspect.signature(Blend)) == "(share, learning_rate=0.5, power=2.0, name=None, *, schedule=None)"
    )
    assert (
        str(inspect.signature(Deeper))
        == "(share=0.25, learning_rate=0.5, power=2.0, extra=1, name=None, *, schedule=None)"
    )
    assert str(inspect.signature(Written)) == "(own=7.0, name=None)"

    class Usual(nbopt.Optimizer):
        decay = hyper(0.5)

    clips = "gradient_clip_norm=None, gradient_clip_value=None, param_clip_value=None"
    first = "stochastic_round=False, learning_rate=None, decay=0.5"
    modifiers = "ema_decay=None, centralize=False, adaptive_clip=None, param_decay=None, mirror_dtype=None"
    assert (
        str(inspect.signature(Usual))
        == f"({first}, {clips}, name=None, *, schedule=None, {modifiers}, state_dtype=None)"
    )


def test_attributes():
    """What the constructor takes are plain attributes; what it doesn't take stays as the class has it."""
    optimizer = Deeper(0.5, power=3.0)
    assert (
        optimizer.__dict__.items() >= {"share": 0.5, "learning_rate": 0.5, "power": 3.0, "extra": 1}.items()
    )
    assert "gradient_clip_norm" not in optimizer.__dict__ and optimizer.gradient_clip_norm is None
    assert isinstance(optimizer.schedule, nbopt.Schedule) and optimizer.schedule is not Deeper().schedule
    assert Deeper.share == 0.25 and not hasattr(Blend, "share")
    assert optimizer.name.startswith("Deeper_") and Deeper(name="n").name == "n"
    for other in (
        pickle.loads(pickle.dumps(optimizer)),
        copy.deepcopy(optimizer),
        Deeper.gen_class(optimizer.get_description()),
    ):
        assert other == optimizer != Deeper()


def test_written_constructor():
    """A constructor that was written is called with what it takes. What it does not take is set after it."""
    written, below = Written(own=4.0), Below(own=5.0, last=6.0, name="n")
    assert (written.own, written.share, written.extra, written.power) == (4.0, 0.75, 2, 2.0)
    assert (below.own, below.last, below.name) == (5.0, 6.0, "n")
    with pytest.raises(errors.ArgumentError, match="own must be a finite number above 0"):
        written.own = 0.0


def test_mixins():
    """A class between two constructors that are made is not left out."""
    called = []

    class Mixin(nbopt.Optimizer):
        def __init__(self, name=None, state_dtype=None):
            super().__init__(name, state_dtype)
            called.append(name)

    class Both(Deeper, Mixin):
        pass

    assert Both(name="n", extra=3).extra == 3 and called == ["n"]

    class Two(nbopt.Lion, Deeper):
        more = hyper(1.0)

    assert {"beta_1", "share", "more"} <= set(inspect.signature(Two).parameters)
    assert Two.checks["share"] is checks.fraction and Two.checks["beta_1"] is checks.below_one


def test_checks():
    """Checks hold in classes below; a class's own table is kept as well; what has none takes anything."""

    class Own(Deeper):
        checks = {**Deeper.checks, "tag": checks.boolean}
        extra = hyper(2)

    optimizer = Own()
    for name, value in {
        "extra": 0.5,
        "share": 2.0,
        "tag": 1,
        "skip_nonfinite": 1,
        "learning_rate": -1.0,
    }.items():
        with pytest.raises(errors.ArgumentError, match=f"^{name} must be"):
            setattr(optimizer, name, value)
    optimizer.power = "anything"
    assert optimizer.extra == 2 and Deeper().extra == 1


def test_documentation():
    """The docstring gets the arguments, before the sections that come later. One that has them stays."""
    text = Blend.__doc__
    assert (
        text.index("A blend")
        < text.index("Parameters\n----------\nshare : float from 0 to 1\n    How much")
        < text.index("Notes\n-----")
    )
    assert (
        "\npower\n    Never checked." in text
        and "\nname : str, optional\n" in text
        and "\ngradient_clip_norm" not in text
    )

    class Documented(Deeper):
        """It has them.

        Parameters
        ----------
        share : float
            Written by hand.
        """

        share = hyper(0.5)

    assert Documented.__doc__.count("Parameters") == 1 and "Written by hand" in Documented.__doc__

    class Bare(Deeper):
        share = hyper(0.5)

    assert Bare.__doc__ is None


def test_wrong_declarations():
    """An order that lacks an argument, or has one that is not there, is refused when the class is made."""
    with pytest.raises(errors.ArgumentError, match=r"Lost\.arguments must name .*Missing: more"):

        class Lost(nbopt.Adadelta):
            more = hyper(1.0)

    with pytest.raises(errors.ArgumentError, match=r"Unknown\.arguments must name .*Not declared: more"):

        class Unknown(nbopt.Adadelta):
            decay = hyper(0.5)
            arguments = ("more", ...)

    class Plain(nbopt.Adadelta):
        arguments = "anything, where nothing is declared"

    assert inspect.signature(Plain) == inspect.signature(nbopt.Adadelta)


def test_table():
    """The documentation's table has the learning rates that are declared."""
    text = (pathlib.Path(__file__).parent.parent / "docs" / "optimizers.md").read_text()
    found = dict(re.findall(r"^\| `(\w+)` \| ([\w.]*) *\|", text, re.MULTILINE))
    for name in set(optimizers.__all__) - {"MultiOptimizer", "Optimizer", "State", "Step", "get_param_list"}:
        parameter = inspect.signature(getattr(optimizers, name)).parameters.get("learning_rate")
        assert found[name] == (
            ""
            if parameter is None
            else "none"
            if parameter.default is parameter.empty
            else f"{parameter.default}"
        )


def test_words_of_pytorch():
    """PyTorch's words keep their meaning, whatever a user's class declares."""

    class Other(nbopt.Optimizer):
        damping = hyper(0.5, torch="alpha")
        depth = hyper(0.5, torch="a_word_of_tests")

    words = torch_words()
    assert words["betas"] == ("beta_1", "beta_2") and words["etas"] == ("eta_minus", "eta_plus")
    assert words["alpha"] == ("decay_rate",) and words["a_word_of_tests"] == ("depth",)
    with pytest.raises(errors.UnknownArgumentError, match="Write beta_1= and beta_2= in place of betas="):
        nbopt.Adam(betas=(0.9, 0.99))


def test_traceback():
    """A traceback shows the line of the constructor that has failed."""
    with pytest.raises(errors.ArgumentError) as caught:
        Deeper(share=3.0)
    linecache.checkcache()
    assert "self.share = share" in "".join(traceback.format_exception(caught.value))


def test_step():
    """Attributes that no constructor has set are found by a rule, and numbers are sources."""
    with nbopt.use_backend("reference"):
        layer, optimizer = nbopt.Parameters((np.ones(2), np.full(2, 4.0))), Deeper(share=0.5)
        optimizer.optimize([layer], 0)
        np.testing.assert_array_equal(layer.params[0], 1.0 - 0.5 * 2.0**2)
        optimizer.power, optimizer.share = 1.0, 0.0
        optimizer.optimize([layer], 0)
        np.testing.assert_array_equal(layer.params[0], -1.0 - 0.5 * 4.0)
