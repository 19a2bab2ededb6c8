"""The groups of nbopt.torch.Optimizer: one list, PyTorch's own.

It takes PyTorch's words and nbopt's for the hyper-parameters.
"""

import copy
import gc
import pickle
import warnings
import weakref

import pytest

import nbopt
from nbopt.errors import ArgumentError

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402


def parameter(value=1.0, grad=1.0):
    p = torch.nn.Parameter(torch.full((4,), value))
    p.grad = torch.full((4,), grad)
    return p


def plain(params, **options):
    """SGD with learning rate 1: each step subtracts the gradient."""
    return nbopt.torch.Optimizer(params, nbopt.GradientDescentMomentum(1.0, 0.0), **options)


def moved(optimizer, *params):
    """Return by how much a step moves each parameter."""
    before = [p.detach().clone() for p in params]
    optimizer.step()
    return [round((b - p.detach())[0].item(), 5) for b, p in zip(before, params)]


# --- one list of groups ---


def test_given_dictionary():
    """The dictionary that was given to the constructor is the group, as in PyTorch."""
    p, q = parameter(), parameter()
    groups = [{"params": [p]}, {"params": (x for x in [q]), "lr": 0.5}]
    optimizer = plain(groups)
    assert all(given is group for given, group in zip(groups, optimizer.param_groups, strict=True))
    groups[1]["lr"] = 0.25
    assert moved(optimizer, p, q) == [1, 0.25]


@pytest.mark.parametrize("edit", ["append", "+=", "insert", "new list"])
def test_new_groups(edit):
    """A dictionary that appears in param_groups is a group from the next step on.

    What it does not say is the constructor's.
    """
    p, q = parameter(), parameter()
    optimizer = plain([p])
    moved(optimizer, p, q)
    new = {"params": [q], "weight_decay": 0.0}
    if edit == "append":
        optimizer.param_groups.append(new)
    elif edit == "+=":
        optimizer.param_groups += [new]
    elif edit == "insert":
        optimizer.param_groups.insert(0, new)
    else:
        optimizer.param_groups = [*optimizer.param_groups, new]
    optimizer.param_groups[0]["lr"] = 0.5
    assert moved(optimizer, p, q) == ([1, 0.5] if edit == "insert" else [0.5, 1])
    assert new["t"] == 1 and new["wdecay"] == 0.0 and len(optimizer.skipped) == 2
    assert [g["t"] for g in optimizer.state_dict()["param_groups"]] == (
        [1, 2] if edit == "insert" else [2, 1]
    )


def test_gone_groups():
    """Groups that are popped are not trained any more, and the others go on; they may come back."""
    p, q, r = (parameter() for _ in range(3))
    optimizer = plain([{"params": [p]}, {"params": [q], "lr": 0.5}, {"params": [r], "lr": 0.25}])
    assert moved(optimizer, p, q, r) == [1, 0.5, 0.25]
    gone = optimizer.param_groups.pop(0)
    assert moved(optimizer, p, q, r) == [0, 0.5, 0.25]
    del optimizer.param_groups[0]
    assert moved(optimizer, p, q, r) == [0, 0, 0.25]
    optimizer.param_groups.append(gone)
    assert moved(optimizer, p, q, r) == [1, 0, 0.25]
    optimizer.param_groups.clear()
    assert moved(optimizer, p, q, r) == [0, 0, 0] and optimizer.skipped == []


def test_merge_and_order():
    """Groups can be merged and put into another order, each with its own optimizer."""
    p, q, r = (parameter() for _ in range(3))
    optimizer = plain(
        [
            {"params": [p]},
            {"params": [q], "lr": 0.5},
            {"params": [r], "optimizer": nbopt.Lion(learning_rate=0.125, wdecay=0)},
        ]
    )
    assert moved(optimizer, p, q, r) == [1, 0.5, 0.125]
    optimizer.param_groups.reverse()
    assert moved(optimizer, p, q, r) == [1, 0.5, 0.125]
    optimizer.param_groups[2]["params"] += optimizer.param_groups[1]["params"]
    del optimizer.param_groups[1]
    assert moved(optimizer, p, q, r) == [1, 1, 0.125]
    optimizer.param_groups[1]["params"] = (x for x in [q])
    assert moved(optimizer, p, q, r) == [0, 1, 0.125]
    assert moved(optimizer, p, q, r) == [0, 1, 0.125]


def test_random_bits_after_edits():
    """No two parameters round by the same bits after a group got another parameter.

    It moves those behind it in the list.
    """

    def coarse():
        p = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        p.grad = torch.full_like(p, 2**-10)
        return p

    p, q, r = coarse(), coarse(), coarse()
    optimizer = nbopt.torch.Optimizer(
        [{"params": [p]}, {"params": [q]}],
        nbopt.GradientDescentMomentum(1.0, 0.0, stochastic_round=True),
        backend="reference",
    )
    optimizer.step()
    optimizer.param_groups[0]["params"].append(r)
    with torch.no_grad():
        for x in (p, q, r):
            x.fill_(1.0)
    optimizer.step()
    assert not torch.equal(q, r) and not torch.equal(p, q) and 0 < (p < 1).float().mean() < 1


def test_positions_of_random_bits():
    """If a group's parameters get another size or number, those behind it move their bits.

    They round as in an optimizer that is made so.
    """

    def made(count, size, updates):
        params = [torch.nn.Parameter(torch.ones(n, dtype=torch.bfloat16)) for n in (*[size] * count, 5000)]
        for p in params:
            p.grad = torch.full_like(p, 2**-10)
        be = nbopt.backends.new_backend("reference", rng_seed=0)
        be.rng_set_state({"seed": 0, "updates": updates})
        rule = nbopt.GradientDescentMomentum(1.0, 0.0, stochastic_round=True)
        return params, nbopt.torch.Optimizer(
            [{"params": params[:-1]}, {"params": params[-1:]}], rule, backend=be
        )

    def bits(params, optimizer):
        with torch.no_grad():
            params[-1].fill_(1.0)
        optimizer.step()
        return params[-1].detach().clone()

    first = bits(*made(1, 10, 0))
    for count, size in ((1, 20000), (2, 10)):
        params, optimizer = made(1, 10, 0)
        assert torch.equal(bits(params, optimizer), first)
        new, fresh = made(count, size, 1)
        optimizer.param_groups[0]["params"] = new[:-1]
        expected = bits(new, fresh)
        assert torch.equal(bits(params, optimizer), expected)
        params, optimizer = made(1, 10, 1)
        assert not torch.equal(bits(params, optimizer), expected)


def test_bad_new_group():
    """A dictionary that makes no sense is refused at the step, is left as it is, and nothing has changed."""
    p, q = parameter(), parameter()
    optimizer = plain([p])
    for bad in ({"lr": 1.0}, {"params": [q], "lr": -1.0}, 3):
        before = copy.copy(bad)
        optimizer.param_groups.append(bad)
        with pytest.raises(ArgumentError):
            optimizer.step()
        assert bad == before and p.tolist() == [1.0] * 4
        optimizer.param_groups.pop()
    group = {"params": [q], "wdecay": -1.0}
    with pytest.raises(ArgumentError, match="wdecay"):
        optimizer.add_param_group(group)
    assert group == {"params": [q], "wdecay": -1.0}
    assert moved(optimizer, p, q) == [1, 0]


def test_optimizer_of_group():
    """Another optimizer under a group's key is refused, as the group keeps its own.

    A new dictionary takes it along.
    """
    p = parameter()
    optimizer = plain([{"params": [p], "optimizer": nbopt.Lion(learning_rate=0.5, wdecay=0)}])
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
    assert moved(optimizer, p) == [0.5]
    optimizer.param_groups[0]["optimizer"] = nbopt.RMSProp()
    with pytest.raises(ArgumentError, match="a group keeps its optimizer"):
        optimizer.step()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_of_edited_groups(copied):
    """A copy that is made between an edit and the step has the edited groups."""
    p, q = parameter(), parameter()
    optimizer = plain([p])
    optimizer.step()
    optimizer.param_groups.insert(0, {"params": [q], "lr": 0.5})
    optimizer.param_groups[1]["weight_decay"] = 0.5
    (p, q), other = copied(((p, q), optimizer))
    assert [group["wdecay"] for group in other.param_groups] == [0, 0.5]
    other.param_groups[1]["weight_decay"] = 0.0
    for x in (p, q):
        x.grad = torch.ones(4)
    assert moved(other, p, q) == [1, 0.5]


def test_no_parameters():
    """A first group may have no parameters, and so may any; where they are is known with the first one."""
    optimizer = plain([{"params": []}, {"params": [], "lr": 0.5}])
    optimizer.step()
    saved = optimizer.state_dict()
    assert [group["params"] for group in saved["param_groups"]] == [[], []]
    optimizer.load_state_dict(saved)
    copy.deepcopy(optimizer).step()
    p, q = parameter(), parameter()
    optimizer.add_param_group({"params": [p]})
    optimizer.param_groups[1]["params"].append(q)
    assert moved(optimizer, p, q) == [1, 0.5] and optimizer.state_dict()["rng_state"]["updates"] == 1
    with pytest.raises(nbopt.errors.LayoutError, match="parameters are on meta, and no backend"):
        optimizer.add_param_group({"params": [torch.zeros(3, device="meta")]})
    other = plain([{"params": []}], backend="reference")
    other.add_param_group({"params": [p]})
    assert moved(other, p) == [1]


def test_scale_and_skip_of_new_groups():
    """The loss scale and skipping hold for groups that come in any way.

    They stay while there is no group at all.
    """
    p, q = parameter(), parameter()
    optimizer = plain([p])
    groups, optimizer.param_groups = optimizer.param_groups, []
    optimizer.loss_scale, optimizer.skip_nonfinite = 4.0, True
    assert optimizer.loss_scale == 4.0 and optimizer.skip_nonfinite is True
    optimizer.param_groups += [*groups, {"params": [q]}]
    assert moved(optimizer, p, q) == [0.25, 0.25]
    q.grad[0] = float("nan")
    assert moved(optimizer, p, q) == [0, 0] and optimizer.skipped == [1, 1]
    optimizer.param_groups.pop()
    assert moved(optimizer, p, q) == [0.25, 0] and optimizer.skipped == [1]


# --- PyTorch's words ---


@pytest.mark.parametrize(
    ("rule", "word", "keys", "value"),
    [
        (nbopt.GradientDescentMomentum(1.0, 0.9), "weight_decay", ["wdecay"], 0.5),
        (nbopt.AdamW(), "weight_decay", ["wdecay"], 0.5),
        (nbopt.AdamW(), "betas", ["beta_1", "beta_2"], (0.5, 0.75)),
        (nbopt.Lion(), "betas", ["beta_1", "beta_2"], [0.5, 0.75]),
        (nbopt.RMSProp(), "eps", ["epsilon"], 0.5),
        (nbopt.RMSProp(), "alpha", ["decay_rate"], 0.5),
        (nbopt.Rprop(), "etas", ["eta_minus", "eta_plus"], (0.25, 1.5)),
        (nbopt.GradientDescentMomentum(1.0, 0.9), "momentum", ["momentum_coef"], 0.5),
        (nbopt.RMSProp(momentum_coef=0.9), "momentum", ["momentum_coef"], 0.5),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_pytorchs_words(rule, word, keys, value):
    """PyTorch's words work in a group given to the constructor, and written later.

    nbopt's own do as well, and both always agree.
    """
    values = list(value) if len(keys) > 1 else [value]
    expected = parameter()
    same = nbopt.torch.Optimizer([{"params": [expected], **dict(zip(keys, values))}], rule)
    given, later, own = (parameter() for _ in range(3))
    first = nbopt.torch.Optimizer([{"params": [given], word: value}], rule)
    second, third = (nbopt.torch.Optimizer([p], rule) for p in (later, own))
    assert word in second.defaults and word in second.param_groups[0]
    second.param_groups[0][word] = value
    third.param_groups[0].update(zip(keys, values))
    for _ in range(2):
        for optimizer in (same, first, second, third):
            optimizer.step()
    for p, optimizer in ((given, first), (later, second), (own, third)):
        group = optimizer.param_groups[0]
        assert torch.equal(p, expected)
        assert [group[key] for key in keys] == values and group[word] == (
            tuple(values) if len(keys) > 1 else value
        )


def test_which_word_wins():
    """Of two words for a value the one that was written last wins.

    If both were written and differ, there is an error.
    """
    p = parameter()
    optimizer = plain([p])
    (group,) = optimizer.param_groups
    for key, other in (("weight_decay", "wdecay"), ("wdecay", "weight_decay"), ("weight_decay", "wdecay")):
        group[key] = group[key] + 0.5
        optimizer.step()
        assert group[other] == group[key]
    before = p.tolist()
    group["weight_decay"], group["wdecay"] = 0.1, 0.2
    with pytest.raises(
        ArgumentError, match=r"wdecay=0.2 and weight_decay=0.1, which are two words for the same"
    ):
        optimizer.step()
    with pytest.raises(ArgumentError, match="two words for the same"):
        plain([{"params": [p], "weight_decay": 0.1, "wdecay": 0.2}])
    assert p.tolist() == before
    group["weight_decay"] = group["wdecay"] = 0.0
    assert moved(optimizer, p) == [1]
    group["weight_decay"] = -1.0
    for _ in range(2):
        with pytest.raises(ArgumentError, match="wdecay must be"):
            optimizer.step()
    group["weight_decay"] = 0.0
    assert moved(optimizer, p) == [1]


def test_asking_for_what_is_not_there():
    """What a rule has not is an error if it is asked for, in any word, at once and later.

    Turned off it may stand there.
    """
    p = parameter()
    for key, value in {
        "weight_decay": 0.1,
        "wdecay": 0.1,
        "betas": (0.9, 0.999),
        "maximize": True,
        "dampening": 0.5,
        "beta_1": 0.9,
    }.items():
        with pytest.raises(
            ArgumentError, match=rf"a group of RMSProp has no {key}; its hyper-parameters are .*Take {key}="
        ):
            nbopt.torch.Optimizer([{"params": [p], key: value}], nbopt.RMSProp())
        optimizer = nbopt.torch.Optimizer([{"params": [p], key: 0}], nbopt.RMSProp())
        optimizer.step()
        optimizer.param_groups[0][key] = value
        before = p.tolist()
        with pytest.raises(ArgumentError, match=f"has no {key}"):
            optimizer.step()
        assert p.tolist() == before
    with pytest.raises(ArgumentError, match="must be 2 numbers"):
        nbopt.torch.Optimizer([{"params": [p], "betas": 0.9}], nbopt.AdamW())


@pytest.mark.parametrize("kind", ["OneCycleLR", "CyclicLR"])
@pytest.mark.parametrize(
    "rule", [nbopt.GradientDescentMomentum(0.1, 0.9), nbopt.AdamW()], ids=["momentum", "betas"]
)
def test_schedulers_of_momentum(kind, rule):
    """OneCycleLR and CyclicLR write group["momentum"] or group["betas"], and the steps follow."""
    p = parameter()
    optimizer = nbopt.torch.Optimizer([p], rule)
    schedulers = torch.optim.lr_scheduler
    scheduler = (
        schedulers.OneCycleLR(optimizer, 0.1, total_steps=10)
        if kind == "OneCycleLR"
        else schedulers.CyclicLR(optimizer, 0.01, 0.1, 5)
    )
    key = "beta_1" if "beta_1" in optimizer.param_groups[0] else "momentum_coef"
    found = set()
    for _ in range(3):
        optimizer.step()
        group = optimizer.param_groups[0]
        assert group[key] == (group["betas"][0] if key == "beta_1" else group["momentum"])
        found.add(group[key])
        scheduler.step()
    assert len(found) == 3


def test_unknown_keys():
    """Keys that mean nothing to nbopt are kept, saved and loaded.

    A misspelt argument of a constructor is an error.
    """
    p = parameter()
    extra = {"lr_scale": 0.5, "name": "head", "max_lr": 0.1, "foreach": None, "fused": None}
    optimizer = plain([{"params": [p], **extra}])
    optimizer.param_groups[0]["min_lr"] = 0.0
    optimizer.step()
    other = plain([parameter()])
    other.load_state_dict(optimizer.state_dict())
    assert {**extra, "min_lr": 0.0}.items() <= other.param_groups[0].items()
    with pytest.raises(TypeError, match="decay_rat"):
        nbopt.torch.Optimizer([p], nbopt.RMSProp(decay_rat=0.9))
    with pytest.raises(TypeError, match="bakend"):
        plain([p], bakend="cpu")


def test_lr_without_learning_rate():
    """Every group has "lr", also of a rule without a learning rate, for PyTorch's schedulers.

    That it does nothing is said once.
    """
    p, q = parameter(), parameter()
    optimizer = nbopt.torch.Optimizer([p], nbopt.Adadelta())
    optimizer.add_param_group({"params": [q]})
    assert [group["lr"] for group in optimizer.param_groups] == [1, 1]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    scheduler.step()
    with pytest.warns(UserWarning, match="Adadelta has no learning rate") as found:
        optimizer.step()
    assert len(found) == 1
    scheduler.step()
    optimizer.step()
    assert torch.equal(p, q) and optimizer.param_groups[0]["lr"] == 0.25


# --- what would do nothing ---


def test_own_schedule_without_epoch():
    """A schedule of nbopt's own does nothing unless group["epoch"] is set: one warning says so."""
    rule = nbopt.GradientDescentMomentum(1.0, 0.0, schedule=nbopt.Schedule(1, 0.5))
    p = parameter()
    optimizer = nbopt.torch.Optimizer([p], rule)
    with pytest.warns(
        UserWarning, match=r'a Schedule depends on the epoch.*set group\["epoch"\] = '
    ) as found:
        optimizer.step()
        optimizer.step()
    assert len(found) == 1
    told = nbopt.torch.Optimizer([p], rule)
    for epoch in range(3):
        told.param_groups[0]["epoch"] = epoch
        assert moved(told, p) == [0.5**epoch]
    with pytest.warns(UserWarning, match="a PolySchedule depends on the epoch"):
        nbopt.torch.Optimizer([p], nbopt.RMSProp(schedule=nbopt.PolySchedule(3, 1.0))).step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain([p]).step()
    assert type(optimizer.state_dict()["param_groups"][0]["epoch"]) is int


@pytest.mark.parametrize("key", ["learning_rate", "schedule", "loss_scale", "skip_nonfinite"])
def test_keys_in_the_wrong_place(key):
    """A group's key that would do nothing is an error that says what to type."""
    p = parameter()
    told = r'write group\["lr"\] = ' if key == "learning_rate" else "belongs to the"
    with pytest.raises(ArgumentError, match=f"a group's '{key}' does nothing: .*{told}"):
        plain([{"params": [p], key: 0.5}])
    optimizer = plain([p])
    optimizer.param_groups[0][key] = 0.5
    with pytest.raises(ArgumentError, match=f"a group's '{key}' does nothing"):
        optimizer.step()
    del optimizer.param_groups[0][key]
    assert moved(optimizer, p) == [1]


def test_attributes_that_do_nothing():
    """Assignments to the optimizer that would do nothing are errors that say what to type.

    Other attributes are anyone's.
    """
    optimizer = plain([parameter()])
    for name in ("learning_rate", "lr", "weight_decay", "wdecay", "momentum", "epoch"):
        key = "lr" if name == "learning_rate" else name
        with pytest.raises(
            ArgumentError,
            match=rf'does nothing, .*for group in optimizer.param_groups: group\["{key}"\] = 0.5',
        ):
            setattr(optimizer, name, 0.5)
        assert not hasattr(optimizer, name)
    for name, meant in (
        ("skip_nonfinte", "skip_nonfinite"),
        ("skip_nonfiinte", "skip_nonfinite"),
        ("loss_scales", "loss_scale"),
    ):
        with pytest.raises(ArgumentError, match=f"did you mean optimizer.{meant} = True"):
            setattr(optimizer, name, True)
    with pytest.raises(ArgumentError, match="give it to the rule"):
        optimizer.schedule = nbopt.Schedule()
    optimizer.note, optimizer._opt_called = "mine", True
    optimizer.skip_nonfinite = True
    assert optimizer.note == "mine" and optimizer.skip_nonfinite


@pytest.mark.parametrize("made", [plain, nbopt.torch.AdamW], ids=["Optimizer", "AdamW"])
def test_attributes_of_the_constructor(made):
    """What only the constructor takes, and a misspelt word, are errors; a misspelt key warns."""
    optimizer = made([parameter()])
    for name, word in (("seed", "seed"), ("backend", "backend"), ("be", "backend")):
        with pytest.raises(
            ArgumentError, match=rf"does nothing .*: write {type(optimizer).__name__}\(.*{word}=1"
        ):
            setattr(optimizer, name, 1)
    with pytest.raises(ArgumentError, match=r"did you mean optimizer.skip_nonfinite = True"):
        optimizer.skip_nonfinit = True
    optimizer.param_groups[0]["weight_deay"] = 0.5
    optimizer.param_groups[0]["pXarams"] = 0.5
    with pytest.warns(UserWarning) as found:
        optimizer.step()
        optimizer.step()
    meant = sorted(str(warning.message).partition("did you mean ")[2] for warning in found)
    assert meant == ["'params'?", "'weight_decay'?"]


def test_one_loop():
    """Groups of the same rule share one loop over memory, whatever their numbers."""
    weights, biases, other = ([parameter(), parameter(2.0)], [parameter(3.0)], [parameter(4.0)])
    groups = [
        {"params": weights, "lr": 0.5, "weight_decay": 0.1},
        {"params": biases, "lr": 0.25, "weight_decay": 0.0},
    ]
    optimizer = nbopt.torch.Optimizer(groups, nbopt.AdamW(), backend="cpu")
    be, alone = (
        optimizer._backend,
        nbopt.torch.Optimizer([parameter(3.0)], nbopt.AdamW(learning_rate=0.25, wdecay=0.0)),
    )
    for _ in range(3):
        before = be.launches
        optimizer.step()
        alone.step()
        assert be.launches - before == 1
    assert torch.equal(biases[0], alone.param_groups[0]["params"][0])
    optimizer.add_param_group({"params": other, "optimizer": nbopt.RMSProp()})
    before = be.launches
    optimizer.step()
    assert be.launches - before == 2


def test_norm():
    """The norm of the last step is that of all groups that clip, as a tensor that later steps leave alone."""
    p, q, r = parameter(grad=3.0), parameter(grad=4.0), parameter(grad=100.0)
    groups = [{"params": [x], "gradient_clip_norm": bound} for x, bound in ((p, 1.0), (q, 2.0), (r, None))]
    optimizer = plain(groups, backend="reference")
    assert optimizer.grad_norm is None
    optimizer.step()
    norm = optimizer.grad_norm
    assert norm.shape == () and norm.item() == 10.0
    q.grad = None
    optimizer.step()
    assert (norm.item(), optimizer.grad_norm.item(), copy.deepcopy(optimizer).grad_norm) == (10.0, 6.0, None)
    p.grad = None
    optimizer.step()
    assert optimizer.grad_norm is None


def test_one_norm():
    """The norm is that of all groups with a bound, whatever their rules; other groups are left out."""
    by_axes = nbopt.SM3(learning_rate=0.1, gradient_clip_norm=0.5)
    results = []
    for clips in (True, False):
        bound = 0.5 if clips else None
        params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((4,), (7,), (2, 3), (5,), (3,))]
        groups = [
            {"params": params[:1]},
            {"params": params[1:2], "optimizer": nbopt.AdamW(gradient_clip_norm=bound)},
            {"params": params[2:4], "optimizer": copy.deepcopy(by_axes)},
            {"params": params[4:], "gradient_clip_norm": None},
        ]
        groups[2]["gradient_clip_norm"] = bound
        rule = nbopt.GradientDescentMomentum(1.0, 0.0, gradient_clip_norm=bound)
        optimizer = nbopt.torch.Optimizer(groups, rule, backend="reference")
        for step in range(3):
            torch.manual_seed(step)
            for p in params:
                p.grad = torch.randn(p.shape)
            norm = torch.nn.utils.get_total_norm([p.grad for p in params[:4]])
            if not clips:
                torch.nn.utils.clip_grad_norm_(params[:4], 0.5)
            optimizer.step()
            if clips:
                torch.testing.assert_close(optimizer.grad_norm.float(), norm)
        results.append(params)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


class Centred(nbopt.Optimizer):
    """Descends gradients less their mean over the group, which a further reduction may weigh."""

    def __init__(self, weighs=False, gradient_clip_norm=None, name=None):
        super().__init__(name=name)
        self.learning_rate, self.weighs, self.gradient_clip_norm = 1.0, weighs, gradient_clip_norm

    def rule(self, step, param, grad):
        mean = step.mean(grad)
        if self.weighs:
            mean = mean * step.max(grad)
        param[:] = param - step.lr * (grad - mean)


@pytest.mark.parametrize(("backend", "count"), [("reference", 6), ("cpu", 2)])
def test_own_reductions(backend, count):
    """The norm is one over all groups that clip. Other reductions of a rule are over its own group."""
    bounds, results = (0.5, 0.25, None, 0.125, 0.5, None), []
    for clips in (True, False):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((4,), (2, 3), (5,), (6,), (3,), (7,))]
        first, second, *others = (bound if clips else None for bound in bounds)
        rules = [Centred(gradient_clip_norm=first), Centred(True, second), Centred(True, others[0])]
        rules.append(nbopt.AdamW(gradient_clip_norm=others[1]))
        rules += [nbopt.Prodigy(gradient_clip_norm=bound) for bound in others[2:]]
        groups = [{"params": [param], "optimizer": rule} for param, rule in zip(params[:count], rules)]
        by = backend if clips else "reference"
        optimizer = nbopt.torch.Optimizer(groups, nbopt.AdamW(), backend=by)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape)
            having = [(p, bound) for p, bound in zip(params[:count], bounds) if bound is not None]
            norm = torch.nn.utils.get_total_norm([p.grad for p, _ in having])
            for p, bound in having if not clips else ():
                p.grad *= (bound / norm).clamp(max=1.0)
            optimizer.step()
            assert not clips or torch.isclose(optimizer.grad_norm.float(), norm)
        results.append(params)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("left", ["other shapes", "no gradient", "fewer", "group"])
@pytest.mark.parametrize("rule", ["axes", "elements", "dampening"])
def test_removed_parameters(rule, left):
    """From the next step on nothing refers to a parameter that was taken out of its group, or its states."""

    def of_shape(*shape):
        p = torch.nn.Parameter(torch.ones(shape))
        p.grad = torch.ones(shape)
        return p

    kept, gone = of_shape(3), of_shape(2, 2)
    groups = [{"params": [kept, of_shape(5)]}, {"params": [gone]}]
    if left != "group":
        groups[0]["params"][1:] = groups.pop()["params"]
    if rule == "dampening":
        optimizer = nbopt.torch.SGD(groups, lr=0.1, momentum=0.9, dampening=0.5, backend="reference")
    else:
        made = {"axes": nbopt.SM3, "elements": nbopt.Adam}[rule](learning_rate=0.1)
        optimizer = nbopt.torch.Optimizer(groups, made, backend="reference")
    for takes_turns in (False, True, False):
        kept.grad = None if takes_turns else torch.ones(3)
        optimizer.step()
    kept.grad = torch.ones(3)
    optimizer.step()
    refs = [weakref.ref(x) for x in (gone, *(x for x in optimizer.state.pop(gone).values() if x.ndim))]
    if left == "group":
        optimizer.param_groups.pop()
    elif left == "fewer":
        optimizer.param_groups[0]["params"].pop()
    else:
        optimizer.param_groups[0]["params"][1] = of_shape(5)
    if left == "no gradient":
        optimizer.param_groups[0]["params"][1].grad = None
    del gone, groups
    optimizer.step()
    gc.collect()
    assert [ref() for ref in refs] == [None] * len(refs)
