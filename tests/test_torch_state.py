"""optimizer.state and state dicts of nbopt.torch.Optimizer.

What users write into them holds, and what others keep there stays.
"""

import copy
import io
import pickle
from collections import defaultdict

import pytest

import nbopt
from nbopt.errors import NboptError, StateError

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402


def parameters(count=2):
    params = [torch.nn.Parameter(torch.zeros(4)) for _ in range(count)]
    for p in params:
        p.grad = torch.ones(4)
    return params


def momentum(params):
    """An optimizer whose first steps move by 1, 1.5, 1.75."""
    return nbopt.torch.Optimizer(params, nbopt.GradientDescentMomentum(1.0, 0.5))


def moved(optimizer, *params):
    before = [p.detach().clone() for p in params]
    optimizer.step()
    return [(b - p.detach())[0].item() for b, p in zip(before, params)]


def saved_and_loaded(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


RESETS = {
    "state.clear()": lambda optimizer, p: optimizer.state.clear(),
    "state = defaultdict": lambda optimizer, p: setattr(optimizer, "state", defaultdict(dict)),
    "state.pop(p)": lambda optimizer, p: optimizer.state.pop(p),
    "del state[p]": lambda optimizer, p: optimizer.state.__delitem__(p),
    "state[p] = {}": lambda optimizer, p: optimizer.state.__setitem__(p, {}),
    "state.update": lambda optimizer, p: optimizer.state.update({p: {}}),
    "state |= ...": lambda optimizer, p: optimizer.state.__ior__({p: {}}),
    "state[p].clear()": lambda optimizer, p: optimizer.state[p].clear(),
    "state[p].pop": lambda optimizer, p: optimizer.state[p].pop("velocity"),
    "state[p].popitem": lambda optimizer, p: optimizer.state[p].popitem(),
    "del state[p][name]": lambda optimizer, p: optimizer.state[p].__delitem__("velocity"),
    "state[p][name] = other": lambda optimizer, p: optimizer.state[p].__setitem__("velocity", torch.zeros(4)),
    "state[p].update": lambda optimizer, p: optimizer.state[p].update(velocity=torch.zeros(4)),
    "state[p] |= ...": lambda optimizer, p: optimizer.state[p].__ior__({"velocity": torch.zeros(4)}),
}


@pytest.mark.parametrize("name", RESETS)
def test_resets(name):
    """The ways in which people reset an optimizer's states are honoured, as by PyTorch's optimizers."""
    p, q = parameters()
    optimizer = momentum([p, q])
    assert moved(optimizer, p, q) == [1, 1]
    assert moved(optimizer, p, q) == [1.5, 1.5]
    RESETS[name](optimizer, p)
    whole = name in ("state.clear()", "state = defaultdict")
    assert moved(optimizer, p, q) == [1, 1 if whole else 1.75]
    assert optimizer.state_dict()["state"][0]["velocity"].tolist() == [-1.0] * 4
    assert moved(optimizer, p, q)[0] == 1.5


def test_states_given():
    """A tensor of the user's in state[p] is the state from then on.

    One that can't be is refused, and nothing has changed.
    """
    p, q = parameters()
    optimizer = momentum([p, q])
    optimizer.state[p]["velocity"] = own = torch.full((4,), -2.0)
    assert (
        moved(optimizer, p, q) == [2, 1]
        and own.tolist() == [-2.0] * 4
        and optimizer.state[p]["velocity"] is own
    )
    optimizer.state[p], optimizer.state[q] = optimizer.state[q], optimizer.state[p]
    assert moved(optimizer, p, q) == [1.5, 2]
    good = optimizer.state[p]["velocity"]
    for bad in (torch.zeros(3), torch.zeros(4, dtype=torch.int32), optimizer.state[q]["velocity"]):
        optimizer.state[p]["velocity"] = bad
        before = p.tolist(), q.tolist()
        with pytest.raises(NboptError):
            optimizer.step()
        assert (p.tolist(), q.tolist()) == before
    optimizer.state[p]["velocity"] = good
    assert moved(optimizer, p, q) == [1.75, 2]


def test_state_moved_and_shared():
    """The states of a parameter can be given to another one.

    A wrapper's alias of optimizer.state stays the optimizer's own.
    """
    p, q = parameters()
    optimizer = momentum([p])
    alias = optimizer.state
    moved(optimizer, p)
    assert alias is optimizer.state and alias[p]["velocity"].tolist() == [-1.0] * 4
    alias[q] = alias.pop(p)
    optimizer.param_groups[0]["params"][0] = q
    assert moved(optimizer, p, q) == [0, 1.5]
    alias.setdefault(q, {})["velocity"] = torch.zeros(4)
    assert moved(optimizer, p, q) == [0, 1]
    assert alias.setdefault(p, {}) is alias[p] and alias[p].setdefault("mine", 3) == 3


def test_plain_dictionaries():
    """state_dict, copies and pickles hold plain dictionaries, which load with weights_only."""
    p, q = parameters()
    optimizer = momentum([p, q])
    optimizer.step()
    found = optimizer.state_dict()
    assert type(found["state"]) is dict and {type(states) for states in found["state"].values()} == {dict}
    assert saved_and_loaded(found)["state"][0]["velocity"].tolist() == [-1.0] * 4
    for copied in (copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        other = copied(optimizer.state)
        assert (
            type(other) is defaultdict
            and other["new"] == {}
            and {type(states) for states in other.values()} == {dict}
        )
        assert type(copied(optimizer.state[p])) is dict and "new" not in optimizer.state
    found["state"][0].clear()
    assert moved(optimizer, p, q) == [1.5, 1.5]


def test_entries_of_others(monkeypatch):
    """What others keep in state[p] stays, and is saved and loaded with its dtype.

    It costs a step no new look at the tensors.
    """
    p, q = parameters()
    be = nbopt.backends.new_backend("reference")
    optimizer = nbopt.torch.Optimizer([p, q], nbopt.GradientDescentMomentum(1.0, 0.5), backend=be)
    optimizer.state[p]["average"] = torch.ones(2, dtype=torch.float64)
    optimizer.state[q].update(
        note="text", theirs=torch.tensor(3.0), nested={"a": [torch.ones(1, dtype=torch.int64), 2]}, none=None
    )
    q.grad = None
    optimizer.step()
    loaded = saved_and_loaded(optimizer.state_dict())
    r, s = parameters()
    other = momentum([r, s])
    other.load_state_dict(loaded)
    first, second = other.state[r], other.state[s]
    assert set(first) == {"average", "velocity", "step"} and first["average"].dtype == torch.float64
    assert second["note"] == "text" and second["theirs"].item() == 3 and second["none"] is None
    assert second["nested"]["a"][0].dtype == torch.int64 and second["nested"]["a"][1] == 2
    assert second["theirs"] is not loaded["state"][1]["theirs"]
    assert moved(other, r, s) == [1.5, 1]
    monkeypatch.setattr(nbopt.torch.share.Share, "_wrap", None)
    for k in range(3):
        other.state[r]["average"] = torch.full((2,), float(k))
        other.step()
    assert other.state[r]["average"].tolist() == [2.0, 2.0]


def test_entries_without_parameter():
    """Entries of a state that belong to no parameter are kept, as PyTorch does."""
    (p,) = parameters(1)
    optimizer = momentum([p])
    optimizer.state["shared"] = {"mine": 1}
    optimizer.step()
    other = momentum(parameters(1))
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert other.state["shared"] == {"mine": 1}


@pytest.mark.parametrize("named", [True, False])
def test_older_state_dict(named):
    """A hyper-parameter that an older state dict doesn't have gets the constructor's value.

    The same holds for PyTorch's word for it.
    """
    (p,) = parameters(1)
    optimizer = momentum([p])
    optimizer.param_groups[0].update(wdecay=0.25, lr_scale=3)
    optimizer.step()
    older = saved_and_loaded(optimizer.state_dict())
    (group,) = older["param_groups"]
    for key in (
        "weight_decay",
        "momentum",
        "momentum_coef",
        "gradient_clip_value",
        "epoch",
        *(() if named else ("optimizer", "lr_scale")),
    ):
        del group[key]
    (q,) = parameters(1)
    other = nbopt.torch.Optimizer([q], nbopt.GradientDescentMomentum(1.0, 0.75, gradient_clip_value=9.0))
    other.load_state_dict(older)
    (found,) = other.param_groups
    assert (found["momentum"], found["momentum_coef"], found["gradient_clip_value"], found["epoch"]) == (
        0.75,
        0.75,
        9,
        0,
    )
    assert (found["weight_decay"], found["wdecay"], found["t"]) == (0.25, 0.25, 1) and "momentum" not in group
    assert moved(other, q) == [1.75]


def test_state_dict_of_another_class():
    """A state dict of another class is refused by its name, or else by its keys and states.

    PyTorch's own always is.
    """
    (p,) = parameters(1)
    optimizer = nbopt.torch.Optimizer([p], nbopt.RMSProp())
    others = [nbopt.torch.Optimizer(parameters(1), rule) for rule in (nbopt.Adam(), nbopt.Adagrad())]
    others.append(torch.optim.RMSprop(parameters(1)))
    for other in others:
        other.step()
        state = other.state_dict()
        with pytest.raises(
            StateError, match=r"the state dict is not of nbopt's RMSProp: a group of it (is of Ad|has no t)"
        ):
            optimizer.load_state_dict(state)
        state["param_groups"][0].pop("optimizer", None)
        with pytest.raises(StateError):
            optimizer.load_state_dict(state)


def test_group_with_its_own_optimizer_is_loaded():
    """A group that has its own optimizer keeps it when a state dict is loaded, and its words agree."""
    p, q = parameters()
    groups = [{"params": [p]}, {"params": [q], "optimizer": nbopt.Lion(learning_rate=0.5, wdecay=0)}]
    optimizer = nbopt.torch.Optimizer(groups, nbopt.GradientDescentMomentum(1.0, 0.5))
    optimizer.step()
    optimizer.param_groups[1]["weight_decay"] = 0.5
    state = saved_and_loaded(optimizer.state_dict())
    assert [group["optimizer"] for group in state["param_groups"]] == ["GradientDescentMomentum", "Lion"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[1]["wdecay"] == 0.5
    optimizer.param_groups[1]["weight_decay"] = 0.0
    assert moved(optimizer, p, q) == [1.5, 0.5]
    assert moved(copy.deepcopy(optimizer), p, q) == [0, 0]


def test_names_in_another_order():
    """Parameters with names in another order than in the state dict are refused.

    It holds within and across groups. Renamed ones are loaded.
    """
    (a, b), (c, d), (e, f) = parameters(), parameters(), parameters()
    state = momentum([("a", a), ("b", b)])
    state.step()
    found = state.state_dict()
    other = momentum([("b", c), ("a", d)])
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(
        StateError, match=r"parameter 0 is 'a' in the state dict and 'b' in the optimizer.*by their place"
    ):
        other.load_state_dict(found)
    assert other.state_dict() == before
    groups = [{"params": [("b", e)]}, {"params": [("a", f)]}]
    saved = momentum([{"params": [("a", a)]}, {"params": [("b", b)]}]).state_dict()
    with pytest.raises(StateError, match="parameter 0 is 'a'"):
        momentum(groups).load_state_dict(saved)
    renamed = momentum([("module.a", c), ("module.b", d)])
    renamed.load_state_dict(found)
    assert moved(renamed, c, d) == [1.5, 1.5]


RULES = {
    "AdamW": nbopt.AdamW,
    "NAdam": nbopt.NAdam,
    "RAdam": nbopt.RAdam,
    "ASGD": lambda: nbopt.ASGD(t0=2.0),
    "Adam": nbopt.Adam,
}


@pytest.mark.parametrize("name", RULES)
def test_late_parameters(name):
    """Each parameter has its own count of steps.

    One whose gradients come late moves as in an optimizer of its own.
    """
    p, q = parameters()
    late = parameters(1)[0]
    both = nbopt.torch.Optimizer([p, q], RULES[name](), backend="reference")
    q.grad = None
    for _ in range(9):
        both.step()
    q.grad = torch.ones(4)
    alone = nbopt.torch.Optimizer([late], RULES[name](), backend="reference")
    for _ in range(9):
        both.step()
        alone.step()
    assert torch.equal(q, late) and not torch.equal(p, q)
    assert [both.state[x]["step"].item() for x in (p, q)] == [18, 9] and both.param_groups[0]["t"] == 18


def test_state_dicts_without_counts():
    """In an older state dict the count of steps is the group's. It becomes each parameter's."""
    found = []
    for old in (False, True):
        params = parameters()
        optimizer = nbopt.torch.Optimizer(params, nbopt.AdamW(), backend="reference")
        optimizer.step()
        saved = optimizer.state_dict()
        if old:
            saved["state"] = {
                key: {name: x for name, x in states.items() if name != "step"}
                for key, states in saved["state"].items()
            }
        optimizer.load_state_dict(saved)
        optimizer.step()
        found.append(params)
    assert all(map(torch.equal, *found))


def test_numbers_of_a_parameter():
    """A rule may keep one number for each parameter; state[p] has it without axes."""

    class Damped(nbopt.Optimizer):
        state_names = ("factor",)
        learning_rate = 1.0

        def states(self, shape):
            return {"factor": nbopt.State(axes=(), init="lr")}

        def rule(self, step, param, grad, factor):
            param[:] = param - factor * grad
            factor[:] = factor * 0.5

    p, q = parameters()
    optimizer = nbopt.torch.Optimizer([p, q], Damped(), backend="reference")
    assert [moved(optimizer, p, q) for _ in range(3)] == [[1, 1], [0.5, 0.5], [0.25, 0.25]]
    assert optimizer.state[p]["factor"].shape == () and optimizer.state[p]["factor"].item() == 0.125
    optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    optimizer.state[p]["factor"].fill_(2.0)
    assert moved(optimizer, p, q) == [2, 0.125]


def test_counts_of_a_group():
    """The counts of steps of a group lie in one tensor, and are float32 without axes as PyTorch's."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(4)]
    optimizer = nbopt.torch.AdamW(params, backend="reference")
    for param in params:
        param.grad = torch.ones(3)
    optimizer.step()
    counts = [optimizer.state[param]["step"] for param in params]
    assert len({count.untyped_storage().data_ptr() for count in counts}) == 1
    assert all(count.shape == () and count.dtype == torch.float32 and count == 1 for count in counts)


def test_state_on_another_device():
    """A state that someone has moved away is refused by its name, until it is back."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = nbopt.torch.AdamW([param], lr=0.1, backend="reference")
    param.grad = torch.ones(3)
    optimizer.step()
    before, kept = param.detach().clone(), optimizer.state[param]["exp_avg"]
    optimizer.state[param]["exp_avg"] = kept.to("meta")
    with pytest.raises(ValueError, match=r"the state exp_avg of parameter 0.* meta"):
        optimizer.step()
    assert torch.equal(param, before) and optimizer.state[param]["step"] == 1
    optimizer.state[param]["exp_avg"] = kept.clone()
    optimizer.step()
    assert not torch.equal(param, before) and optimizer.state[param]["step"] == 2
