"""What torch.optim refuses, nbopt.torch refuses with the same type of exception, in words for tensors."""

import inspect
import warnings

import pytest

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402

NAMES = [name for name in nbopt.torch.__all__ if name != "Optimizer" and hasattr(torch.optim, name)]
PAIR = torch.tensor([0.1, 0.2])


def leaf(dtype=torch.float32):
    return torch.nn.Parameter(torch.ones(3, 3, dtype=dtype))


#: Argument -> values that make no sense. A class is given those arguments that it has.
VALUES = {
    "lr": (-1.0, PAIR, torch.tensor(-1.0), float("nan")),
    "weight_decay": (-1.0,),
    "eps": (-1.0, (-1.0, 1e-3), (None, -1.0)),
    "betas": ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, torch.tensor(0.9)), (PAIR, PAIR), 0.9),
    "momentum": (-1.0,),
    "nesterov": (True,),
    "rho": (-0.1, 1.1),
    "alpha": (-1.0,),
    "etas": ((1.2, 0.5), (-1.0, 1.2), (0.5, 0.9), 0.5),
    "lr_decay": (-1.0,),
    "initial_accumulator_value": (-1.0,),
    "momentum_decay": (-1.0,),
    "beta2_decay": (1.0,),
    "d": (0.5,),
    "adjust_lr_fn": ("mine",),
}
TOGETHER = (
    {"foreach": True, "fused": True},
    {"fused": True, "differentiable": True},
    {"lr": torch.tensor(0.1), "foreach": True},
    {"betas": (torch.tensor(0.9), torch.tensor(0.9)), "foreach": True},
    {"momentum": 0.9, "dampening": 0.5, "nesterov": True},
)
ONE = leaf()
PARAMS = {
    "no list": lambda: 3,
    "None": lambda: None,
    "a tensor": leaf,
    "no tensors": list,
    "numbers": lambda: [3],
    "text": lambda: ["weight"],
    "lists in a list": lambda: [[leaf()]],
    "a set": lambda: {leaf()},
    "a set in a group": lambda: [{"params": {leaf()}}],
    "no leaf": lambda: [leaf() * 2],
    "a group without parameters": lambda: [{"lr": 0.1}],
    "a group of None": lambda: [{"params": None}],
    "twice": lambda: [{"params": [ONE]}, {"params": [ONE]}],
    "a group behind a tensor": lambda: [leaf(), {"params": [leaf()]}],
    "a tensor behind a group": lambda: [{"params": [leaf()]}, leaf()],
    "names for some": lambda: [("weight", leaf()), leaf()],
    "names for some groups": lambda: [{"params": [("weight", leaf())]}, {"params": [leaf()]}],
}
GROUPS = {
    "a list": lambda optimizer: [leaf()],
    "None": lambda optimizer: None,
    "no parameters": lambda optimizer: {"lr": 0.1},
    "a set": lambda optimizer: {"params": {leaf()}},
    "numbers": lambda optimizer: {"params": [3]},
    "no leaf": lambda optimizer: {"params": [leaf() * 2]},
    "again": lambda optimizer: {"params": optimizer.param_groups[0]["params"]},
}
STATES = {
    "more groups": lambda saved: {**saved, "param_groups": saved["param_groups"] * 2},
    "no group": lambda saved: {**saved, "param_groups": []},
    "more parameters": lambda saved: {
        **saved,
        "param_groups": [{**saved["param_groups"][0], "params": [0, 1]}],
    },
}


def attempts(name):
    """What is called with PyTorch's class or ours, by what it is called here."""
    arguments = inspect.signature(getattr(torch.optim, name)).parameters
    for key, values in VALUES.items():
        for value in values if key in arguments else ():
            yield f"{key}={value}", lambda kind, key=key, value=value: kind([leaf()], **{key: value})
    for given in TOGETHER:
        if given.keys() <= arguments.keys():
            yield str(given), lambda kind, given=given: kind([leaf()], **given)
    yield "misspelt", lambda kind: kind([leaf()], learning_rat=0.1)
    yield "too many", lambda kind: kind([leaf()], *range(30))
    yield "nothing", lambda kind: kind()
    for called, params in PARAMS.items():
        yield called, lambda kind, params=params: kind(params(), lr=0.1)

    def added(kind, group):
        optimizer = kind([leaf()], lr=0.1)
        optimizer.add_param_group(group(optimizer))

    def loaded(kind, edit):
        optimizer = kind([leaf()], lr=0.1)
        optimizer.load_state_dict(edit(optimizer.state_dict()))

    for called, group in GROUPS.items():
        yield f"added: {called}", lambda kind, group=group: added(kind, group)
    for called, edit in STATES.items():
        yield f"loaded: {called}", lambda kind, edit=edit: loaded(kind, edit)


def error_of(function, kind):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(kind)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", NAMES)
def test_same_types(name):
    """Each thing that PyTorch's class refuses is refused by the same type, in a sentence at least."""
    refused, wrong = 0, []
    for called, function in attempts(name):
        theirs, ours = (error_of(function, getattr(module, name)) for module in (torch.optim, nbopt.torch))
        if theirs is None:
            continue
        refused += 1
        clear = str(ours) == str(theirs) or len(str(ours)) > 30
        if not isinstance(ours, type(theirs)) or "numpy" in str(ours).lower() or not clear:
            wrong.append((called, theirs, ours))
    assert not wrong
    assert refused >= len(PARAMS) + len(GROUPS) + len(STATES)


@pytest.mark.parametrize("name", NAMES)
def test_twice_in_a_group(name):
    """A parameter twice in a group is PyTorch's warning."""
    param = leaf()
    for module in (torch.optim, nbopt.torch):
        with pytest.warns(UserWarning, match="duplicate parameters"):
            getattr(module, name)([param, param], lr=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_lost_keys(name):
    """A key that a step needs, and a group that is none, are refused, and nothing has changed."""
    param = leaf()
    optimizer = getattr(nbopt.torch, name)([param], lr=0.1, backend="reference")
    param.grad = torch.ones(3, 3)
    rate = optimizer.param_groups[0].pop("lr")
    with pytest.raises(ValueError, match=r"no 'lr' any more"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = rate
    optimizer.param_groups.append(3)
    with pytest.raises(TypeError, match="a group is a dict"):
        optimizer.step()
    assert torch.equal(param, torch.ones(3, 3))
    optimizer.param_groups.pop()
    optimizer.step()
    assert not torch.equal(param, torch.ones(3, 3))


def test_words_of_groups():
    """A message names a key of the group as PyTorch does, and not as nbopt does inside."""
    optimizer = nbopt.torch.Adafactor([leaf()], backend="reference")
    for key, value in (("lr", -1.0), ("weight_decay", None)):
        before = optimizer.param_groups[0][key]
        optimizer.param_groups[0][key] = value
        with pytest.raises(ValueError, match=f"a group's '{key}' must be"):
            optimizer.step()
        optimizer.param_groups[0][key] = before
