"""Messages about arrays, in the words of people who have tensors."""

import difflib
import functools
import inspect

from nbopt.errors import ArgumentError, NboptError, UnknownArgumentError
from nbopt.language.words import ARGUMENTS
from nbopt.optimizers.hyper import torch_words

_INSTEAD = {
    "x.astype(numpy.float32)": "x.float()",
    "numpy.ascontiguousarray(x)": "x.contiguous()",
    "numpy.array(x)": "x.clone()",
    "arrays of dtype": "tensors of dtype",
    "is no array whose memory could be shared. numpy.array(x, 'float32') makes one, "
    "nbopt.get_backend().array(x) a tensor, with a copy of its values": (
        "is no tensor: torch.as_tensor(x) makes one"
    ),
    "write optimizer.schedule = None, make optimizer.learning_rate a tensor of one element on the GPU, and "
    "write the rate of each epoch into that tensor": (
        "give the rule no schedule, make the group's lr a tensor on the GPU, and take a scheduler of "
        "PyTorch's, which writes into it"
    ),
}


def in_torchs_words(error):
    """Replace what an error of nbopt's says of NumPy.

    Parameters
    ----------
    error : BaseException
        Its message is changed.
    """
    if isinstance(error, NboptError) and error.args and isinstance(error.args[0], str):
        text = error.args[0]
        for ours, theirs in _INSTEAD.items():
            text = text.replace(ours, theirs)
        error.args = (text, *error.args[1:])


def torchs_word(name):
    """Return PyTorch's word for one of nbopt's for a hyper-parameter, or an empty text."""
    return next((word for word, names in torch_words().items() if name in names and name != word), "")


_INSTEAD_OF_ARGUMENTS = {
    "schedule": "PyTorch's schedulers set the learning rate: torch.optim.lr_scheduler",
    "loss_scale": "Write optimizer.loss_scale = ... afterwards",
    "optimizer": "nbopt.torch.Optimizer(params, nbopt.RMSProp()) takes one",
}


def checked(init):
    """Return a constructor of a class for PyTorch that looks at its call first, with the signature of `init`.

    It raises UnknownArgumentError, which says what to type, if the first argument is no list of parameters,
    and for names that `init` does not take.
    """
    signature = inspect.signature(init)
    names = list(signature.parameters)[1:]
    takes_all = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    called = init.__qualname__.partition(".")[0]

    @functools.wraps(init)
    def constructor(self, *args, **kwargs):
        unknown = [] if takes_all else [name for name in kwargs if name not in names]
        if unknown:
            advice = [_advice(name, names) for name in unknown]
            raise UnknownArgumentError(
                f"{called} takes no {', '.join(unknown)}. "
                + " ".join([*dict.fromkeys(filter(None, advice)), f"Its arguments are {', '.join(names)}"])
            )
        given = dict(zip(names, args), **kwargs)
        if "params" in given:
            _check_params(called, given["params"])
        if isinstance(given.get("lr"), str):
            raise ArgumentError(f"lr must be a number, not {given['lr']!r}")
        for word in ("betas", "etas"):
            if isinstance(given.get(word), (int, float)):
                raise UnknownArgumentError(
                    f"{word} is a pair of numbers: write {word}=(0.9, 0.999), not {given[word]!r}"
                )
        init(self, *args, **kwargs)

    constructor.__signature__ = signature  # type: ignore[attr-defined]
    return constructor


def _advice(name, names):
    if names[:2] == ["params", "optimizer"]:
        word = "learning_rate" if name == "lr" else name
        return f"Give it to the rule: nbopt.torch.Optimizer(params, nbopt.RMSProp({word}=...))."
    if name in _INSTEAD_OF_ARGUMENTS:
        return f"{_INSTEAD_OF_ARGUMENTS[name]}."
    (own,) = ARGUMENTS.get(name, (name,))
    word = own if own in names else torchs_word(own)
    if word not in names:
        word = "".join(difflib.get_close_matches(name, names, 1, 0.8))
    return f"Write {word}= in place of {name}=." if word else ""


def _check_params(called, params):
    """Raise where the first argument is what the parameters are a part of."""
    asked = getattr(params, "parameters", None)
    if callable(asked) or inspect.ismethod(params):
        given = "the model" if callable(asked) else "the method"
    elif isinstance(params, dict):
        given = "a dict"
    elif hasattr(params, "param_groups"):
        given = "an optimizer"
    elif inspect.isgenerator(params) and params.gi_frame is None:
        given = "a generator that something else has gone through"
    else:
        return
    raise UnknownArgumentError(
        f"{called} takes parameters, not {given}: write nbopt.torch.{called}(model.parameters(), ...)"
    )
