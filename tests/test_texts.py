"""What a user sees at a prompt: texts of objects, completions, signatures, colours."""

import copy
import inspect
import io
import pickle
import sys

import numpy as np
import pytest

import nbopt
from nbopt import terminal
from nbopt.naming import Described

GIVEN = {
    "ExpSchedule": (0.5,),
    "GradientDescentMomentum": (0.1, 0.9),
    "MultiOptimizer": ({"default": nbopt.RMSProp(learning_rate=0.5), "Bias": nbopt.Adam()},),
    "PolySchedule": (10, 0.5),
    "PowerSchedule": (2, 0.5),
    "ShiftSchedule": (2,),
    "StepSchedule": ([1, 2], [0.5, 0.25]),
}
DESCRIBED = [
    name
    for name in nbopt.__all__
    if isinstance(getattr(nbopt, name), type) and issubclass(getattr(nbopt, name), Described)
]


@pytest.mark.parametrize("name", DESCRIBED)
def test_described(name):
    """The text of an optimizer or a schedule is what makes an equal one."""
    with nbopt.use_backend("reference"):
        made = getattr(nbopt, name)(*GIVEN.get(name, ()))
    assert repr(made).startswith(f"{name}(")
    assert len(repr(made)) < 150
    assert eval(repr(made), {kind: getattr(nbopt, kind) for kind in DESCRIBED}) == made


def test_changed():
    """It has the values of now, the learning rate always, and what differs from a constructor without any."""
    optimizer = nbopt.Adam(schedule=nbopt.Schedule(10, 0.5), name="mine")
    optimizer.beta_1 = 0.5
    assert (
        repr(optimizer)
        == "Adam(learning_rate=0.001, beta_1=0.5, name='mine', schedule=Schedule(step_config=10, change=0.5))"
    )


def test_own():
    """A class of a user's has a text, too, whatever its arguments are and whether it keeps them."""

    class Own(nbopt.Optimizer):
        def __init__(self, table, lost=3, *more, **others):
            super().__init__()
            self.table = table

    assert repr(Own(np.ones((100, 100)))) == "Own(table=<ndarray of shape (100, 100)>)"
    assert len(repr(Own(list(range(1000))))) < 110


class Looks(nbopt.Optimizer):
    """A rule that notes the texts of what it gets."""

    pure = False

    def rule(self, step, param, grad):
        self.texts = [
            repr(one) for one in (self, step, step.t, param, grad, param * 2 + grad, step.norm(grad))
        ]
        param[:] = param - grad


def test_others():
    """The texts of backends, layers, tensors and symbols are short, and say no address."""
    arrays = [(np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)) for _ in range(50)]
    with nbopt.use_backend("reference", batch_size=4) as be:
        layer, looks = nbopt.Parameters(*arrays, name="many"), Looks()
        looks.optimize([layer], 0)
        texts = [*looks.texts, repr(be), repr(layer), repr(be.ones((3, 2)) * 2), repr(be.ones((3, 2)))]
        texts += [repr(nbopt.State()), repr(nbopt.State(axes=(0,), init="param"))]
    for text in texts:
        assert len(text) < 100
        assert " at 0x" not in text
    assert "<backend 'reference', batch size 4>" in texts
    assert "<Parameters 'many': (3, 2), (3, 2), (3, 2), (3, 2), and 46 more>" in texts
    assert repr(nbopt.Parameters((1.0, 2.0), name="odd")) == "<Parameters 'odd': ()>"


def test_completion():
    """A prompt offers the public names, and of layers and optimizers what can be used."""
    assert set(nbopt.__all__) <= set(dir(nbopt))
    offered = {name for name in dir(nbopt) if not name.startswith("_")} - {"torch"}
    assert offered == {name for name in nbopt.__all__ if not name.startswith("_")}
    assert {"learning_rate", "optimize", "schedule", "state_dict"} <= set(dir(nbopt.RMSProp()))
    assert {"params", "grads", "states", "set_grad"} <= set(dir(nbopt.Parameters()))


def test_signatures_of_all():
    """help() has the arguments of every public class and function by their names."""
    modules = [nbopt]
    try:
        import torch  # noqa: F401
    except ImportError:
        pass
    else:
        modules.append(nbopt.torch)
    for module in modules:
        for name in module.__all__:
            found = getattr(module, name)
            # Users never make an Expr: it is what rules get.
            if not callable(found) or found is nbopt.Expr:
                continue
            parameters = inspect.signature(found).parameters.values()
            named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
            assert named or name in ("available_backends", "get_backend"), f"{module.__name__}.{name}"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colours_on_a_terminal_only(monkeypatch):
    """The text of kernels has colours where it is printed on a terminal, and is plain everywhere else."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with nbopt.use_backend("cpu"):
        layer = nbopt.Parameters((np.ones(3, np.float32), np.ones(3, np.float32)))
        text = nbopt.explain(nbopt.GradientDescentMomentum(0.1, 0), [layer])
    plain = "".join(text)
    for other in (pickle.loads(pickle.dumps(text)), copy.deepcopy(text)):
        assert other == text == plain

    def printed(stream):
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            print(text)
        finally:
            monkeypatch.undo()
        return stream.getvalue()

    assert printed(io.StringIO()) == plain + "\n" == f"{text}\n"
    shown = printed(Terminal())
    assert "\x1b[34mdef\x1b[0m update(" in shown
    for code in ("\x1b[34m", "\x1b[90m", "\x1b[0m"):
        shown = shown.replace(code, "")
    assert shown == plain + "\n"


@pytest.mark.parametrize("setting", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours(monkeypatch, setting):
    """Who wants none has none; and a closed stream is no terminal."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.is_terminal(Terminal())
    monkeypatch.setenv(*setting)
    assert not terminal.is_terminal(Terminal())
    closed = Terminal()
    closed.close()
    assert not terminal.is_terminal(closed) and not terminal.is_terminal(object())
