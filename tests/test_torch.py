"""nbopt.torch.Optimizer: what PyTorch's users expect of an optimizer, on nbopt's engine."""

import copy
import io
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

import nbopt
from nbopt.errors import ArgumentError, DtypeError, LayoutError, NboptError, ShapeError, StateError

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

from helpers import OPTIMIZERS, in_one_storage, same_bits  # noqa: E402

import nbopt.torch  # noqa: E402

SHAPES = [(3, 4), (5,), (), (2, 3, 2, 2), (0, 3)]


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0, grads=True):
    generator = torch.Generator().manual_seed(seed)
    found = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    if grads:
        set_grads(found, seed + 1)
    return found


def set_grads(params, seed, only=None):
    """New gradient tensors, as zero_grad and a backward pass make them."""
    generator = torch.Generator().manual_seed(seed)
    for number, p in enumerate(params):
        grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        p.grad = grad if only is None or number in only else None


def bits(tensor):
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.int16) if tensor.element_size() == 2 else tensor


def equal(first, second):
    return len(first) == len(second) and all(torch.equal(bits(a), bits(b)) for a, b in zip(first, second))


def run(optimizer, params, steps, start=0):
    for k in range(start, start + steps):
        set_grads(params, 100 + k)
        optimizer.step()


# --- the numbers ---


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name, dtype, marks=() if dtype == "float32" or name == "nesterov" else pytest.mark.thorough
        )
        for name in OPTIMIZERS
        for dtype in ("float32", "float64", "bfloat16", "float16")
    ],
)
@pytest.mark.rest("adam-float32", "momentum-float32", "nesterov-bfloat16")
def test_a_step_has_the_bits_of_the_same_optimizer_over_numpy_arrays(name, dtype):
    params = parameters(dtype=getattr(torch, dtype))
    storage = nbopt.get_backend().storage_dtype(dtype)
    layer = nbopt.Parameters(*((np.zeros(p.shape, storage), np.zeros(p.shape, storage)) for p in params))
    ours, theirs = nbopt.torch.Optimizer(params, OPTIMIZERS[name]()), OPTIMIZERS[name]()
    as_numpy = [bits(p).numpy().view(storage) for p in params]
    for (w, _), values in zip(zip(layer.params, layer.grads), as_numpy):
        w[...] = values
    for k in range(3):
        set_grads(params, k)
        for g, p in zip(layer.grads, params):
            g[...] = bits(p.grad).numpy().view(storage)
        ours.step()
        theirs.optimize([layer], 0)
    assert all(same_bits(bits(p).numpy().view(storage), w) for p, w in zip(params, layer.params))
    for p, states in zip(params, layer.states):
        assert all(
            same_bits(bits(ours.state[p][key]).numpy().view(s.dtype), s.get())
            for key, s in zip(theirs.states_in_use(), states)
        )


def test_a_rule_of_the_users_own_runs_where_no_backend_was_ever_set():
    class SignMomentum(nbopt.Optimizer):
        state_names = ("momentum",)

        def __init__(self, learning_rate=1e-3, decay=0.9, gradient_clip_value=None, name=None):
            super().__init__(name=name)
            self.learning_rate, self.decay, self.gradient_clip_value = (
                learning_rate,
                decay,
                gradient_clip_value,
            )

        def rule(self, step, param, grad, momentum):
            momentum[:] = self.decay * momentum + (1 - self.decay) * grad
            param[:] = self.clip_value(param - step.lr * self.be.sgn(momentum), 10.0)

    assert nbopt.NervanaObject.be is None
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = nbopt.torch.Optimizer(params, SignMomentum(learning_rate=0.5, gradient_clip_value=1.0))
    optimizer.step()
    assert nbopt.NervanaObject.be is None
    assert all(torch.equal(p, b - 0.5 * torch.sign(p.grad)) for p, b in zip(params, before))
    assert set(optimizer.param_groups[0]) >= {"lr", "decay", "gradient_clip_value"}


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        (nbopt.GradientDescentMomentum(0.1, 0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1e-6),
        (
            nbopt.GradientDescentMomentum(0.1, 0.0, wdecay=0.1),
            lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
            1e-6,
        ),
        (
            nbopt.GradientDescentMomentum(0.1, 0.9, nesterov=True),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
            1e-6,
        ),
        # Beside the root here and within it there, the epsilons matter where gradients are small; 1e-20
        # matters nowhere.
        (
            nbopt.Adagrad(learning_rate=0.01, epsilon=1e-20),
            lambda p: torch.optim.Adagrad(p, lr=0.01, eps=1e-20),
            1e-6,
        ),
        (
            nbopt.RMSProp(decay_rate=0.9, epsilon=1e-20),
            lambda p: torch.optim.RMSprop(p, lr=2e-3, alpha=0.9, eps=1e-20),
            1e-6,
        ),
        (
            nbopt.Adadelta(decay=0.9, epsilon=1e-6),
            lambda p: torch.optim.Adadelta(p, lr=1.0, rho=0.9, eps=1e-6),
            1e-6,
        ),
        (nbopt.Adam(epsilon=1e-20), lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-20), 1e-6),
    ],
    ids=["momentum", "plain", "nesterov", "adagrad", "rmsprop", "adadelta", "adam"],
)
@pytest.mark.rest("adam")
def test_where_formulas_agree_a_network_trains_as_with_torch_optim(ours, theirs, tolerance):
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn")
    digits = datasets.load_digits()
    x, labels = torch.tensor(digits.data / 8 - 1, dtype=torch.float32), torch.tensor(digits.target)
    losses = []
    for make in (lambda p: nbopt.torch.Optimizer(p, ours), theirs):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        optimizer = make(model.parameters())
        found = []
        for k in range(30):
            batch = slice(50 * k, 50 * (k + 1))
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        losses.append(np.array(found))
    # Float32's rounding errors, which grow with the steps.
    assert np.allclose(*losses, rtol=30 * tolerance, atol=30 * tolerance)
    assert losses[0][-1] < losses[0][0]


def test_gradients_are_taken_as_they_are_whatever_the_current_backends_batch_size_and_the_norm_clip_too():
    results = []
    for batch_size in (1, 64):
        be = nbopt.set_backend("cpu", batch_size=batch_size)
        for backend in (None, be, "reference"):
            params = parameters()
            before = [p.detach().clone() for p in params]
            nbopt.torch.Optimizer(
                params, nbopt.GradientDescentMomentum(1.0, 0.0, gradient_clip_norm=0.5), backend=backend
            ).step()
            results.append([p.detach().clone() for p in params])
    assert all(equal(found, results[0]) for found in results)
    norm = torch.sqrt(sum((p.grad**2).sum() for p in params))
    assert norm > 0.5
    assert all(
        torch.allclose(after, old - p.grad * 0.5 / norm) for after, old, p in zip(results[0], before, params)
    )


# --- the current backend ---


def test_the_current_backend_is_neither_used_nor_changed():
    be = nbopt.set_backend("cpu", rng_seed=5, batch_size=7)
    before = be.rng_get_state(), be.launches, be.bsz
    params = parameters(dtype=torch.bfloat16)
    optimizer = nbopt.torch.Optimizer(
        params, nbopt.RMSProp(stochastic_round=True, gradient_clip_value=1.0, param_clip_value=5.0)
    )
    run(optimizer, params, 3)
    assert nbopt.get_backend() is be and (be.rng_get_state(), be.launches, be.bsz) == before


def test_two_threads_step_two_optimizers_while_a_third_one_uses_the_current_backend():
    def train(found, name):
        params = parameters([(1000,)] * 5, seed=3)
        optimizer = nbopt.torch.Optimizer(params, OPTIMIZERS[name](gradient_clip_norm=1.0))
        run(optimizer, params, 50)
        found[name] = [p.detach().clone() for p in params]

    alone, together = {}, {}
    for name in ("rmsprop", "adam"):
        train(alone, name)
    threads = [threading.Thread(target=train, args=(together, name)) for name in ("rmsprop", "adam")]
    for thread in threads:
        thread.start()
    w, dw = np.ones(1000, np.float32), np.ones(1000, np.float32)
    for name in ("cpu", "reference") * 10:
        with nbopt.use_backend(name):
            nbopt.RMSProp().optimize([nbopt.Parameters((w, dw))], 0)
    for thread in threads:
        thread.join()
    assert all(equal(alone[name], together[name]) for name in alone)


def test_a_backend_can_be_named_or_given_and_torchs_generator_is_not_used():
    state = torch.get_rng_state()
    optimizer = nbopt.torch.Optimizer(
        parameters(grads=False), nbopt.RMSProp(), backend="reference", seed=1234
    )
    assert optimizer.state_dict()["rng_state"] == {"seed": 1234, "updates": 0}
    params = parameters()
    assert torch.equal(torch.get_rng_state(), state)
    be = nbopt.backends.new_backend("reference", rng_seed=9)
    nbopt.torch.Optimizer(params, nbopt.RMSProp(), backend=be).step()
    assert be.rng_get_state() == {"seed": 9, "updates": 1} and be.launches == len(params)
    with pytest.raises(NboptError, match="there is no backend 'tpu'"):
        nbopt.torch.Optimizer(parameters(), nbopt.RMSProp(), backend="tpu")


# --- groups ---


def test_groups_have_their_own_hyper_parameters_and_optimizers_and_are_updated_in_one_step():
    first, second, third = parameters([(4,)] * 3)
    prototype = nbopt.GradientDescentMomentum(0.5, 0.0)
    groups = [
        {"params": first},
        {"params": [second], "lr": 0.25},
        {"params": [third], "optimizer": nbopt.Adagrad(epsilon=0.0)},
    ]
    optimizer = nbopt.torch.Optimizer(groups, prototype)
    before = [p.detach().clone() for p in (first, second, third)]
    optimizer.step()
    assert torch.equal(first, before[0] - 0.5 * first.grad)
    assert torch.equal(second, before[1] - 0.25 * second.grad)
    assert torch.allclose(third, before[2] - 0.01 * torch.sign(third.grad))
    assert prototype.learning_rate == 0.5 and "momentum_coef" not in optimizer.param_groups[2]
    assert all(given is group for given, group in zip(groups, optimizer.param_groups)) and groups[0][
        "params"
    ] == [first]
    assert optimizer.state_dict()["rng_state"]["updates"] == 1


def test_every_hyper_parameter_of_a_group_holds_from_the_next_step_on_and_compiles_nothing():
    params = parameters([(4,)])
    be = nbopt.backends.new_backend("cpu")
    optimizer = nbopt.torch.Optimizer(params, nbopt.RMSProp(), backend=be)
    group = optimizer.param_groups[0]
    assert {"lr", "decay_rate", "epsilon", "stochastic_round", "gradient_clip_norm"} <= set(group)
    run(optimizer, params, 2)
    compiled = be.compilations
    group.update(lr=1.0, decay_rate=0.0, epsilon=0.0)
    before = params[0].detach().clone()
    optimizer.step()
    assert torch.allclose(params[0], before - torch.sign(params[0].grad))
    assert be.compilations == compiled


@pytest.mark.parametrize("adding", [False, True])
def test_a_key_that_the_optimizer_does_not_have_is_refused_with_those_it_has(adding):
    optimizer = nbopt.torch.Optimizer(parameters(), nbopt.RMSProp())
    with pytest.raises(
        ArgumentError,
        match=r"a group of RMSProp has no weight_decay; its hyper-parameters are .*decay_rate, lr",
    ):
        group = {"params": parameters(), "weight_decay": 0.1}
        optimizer.add_param_group(group) if adding else nbopt.torch.Optimizer([group], nbopt.RMSProp())
    assert len(optimizer.param_groups) == 1
    optimizer.step()


def test_values_that_make_no_sense_are_refused_when_a_group_is_added_and_at_the_step():
    params = parameters()
    with pytest.raises(ArgumentError, match="learning_rate must be a finite number from 0 on, not -1"):
        nbopt.torch.Optimizer([{"params": params, "lr": -1}], nbopt.RMSProp())
    optimizer = nbopt.torch.Optimizer(params, nbopt.RMSProp())
    before = [p.detach().clone() for p in params]
    optimizer.param_groups[0]["decay_rate"] = 2
    with pytest.raises(ArgumentError, match="decay_rate"):
        optimizer.step()
    assert equal(params, before) and optimizer.param_groups[0]["t"] == 0 and not optimizer.state
    optimizer.param_groups[0]["decay_rate"] = 0.5
    optimizer.step()
    assert optimizer.param_groups[0]["t"] == 1


@pytest.mark.parametrize("number", range(6))
def test_schedulers_of_pytorch_work(number):
    make = [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10, cycle_momentum=False),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k)),
        lambda o: torch.optim.lr_scheduler.LinearLR(o),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    ][number]
    params, others = parameters(), parameters()
    ours, theirs = (
        nbopt.torch.Optimizer(params, nbopt.GradientDescentMomentum(0.1, 0.0)),
        torch.optim.SGD(others, lr=0.1),
    )
    schedulers = make(ours), make(theirs)
    for k in range(6):
        for optimizer, scheduler, found in zip((ours, theirs), schedulers, (params, others)):
            set_grads(found, k)
            optimizer.step()
            scheduler.step()
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
    assert all(torch.allclose(p, q) for p, q in zip(params, others))


def test_reduce_on_plateau_works():
    optimizer = nbopt.torch.Optimizer(parameters(), nbopt.Adam())
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] < 1e-3


def test_an_epoch_set_in_the_group_is_what_nbopts_own_schedules_see():
    params = parameters([(4,)])
    optimizer = nbopt.torch.Optimizer(
        params, nbopt.GradientDescentMomentum(1.0, 0.0, schedule=nbopt.Schedule(1, 0.5))
    )
    before = params[0].detach().clone()
    optimizer.param_groups[0]["epoch"] = 2
    optimizer.step()
    assert torch.equal(params[0], before - 0.25 * params[0].grad)


# --- tensors ---


def test_gradients_are_new_tensors_at_every_step_and_nothing_is_compiled_or_looked_at_afresh(monkeypatch):
    params = parameters([(100,)] * 10)
    be = nbopt.backends.new_backend("cpu")
    optimizer = nbopt.torch.Optimizer(params, nbopt.RMSProp(), backend=be)
    run(optimizer, params, 1)
    compiled = be.compilations
    monkeypatch.setattr(be, "checked_columns", None)
    for k in range(100):
        set_grads(params, k)
        optimizer.step()
    assert be.compilations == compiled and optimizer.param_groups[0]["t"] == 101


def test_old_gradients_are_not_kept_alive():
    import weakref

    params = parameters([(1000,)])
    optimizer = nbopt.torch.Optimizer(params, nbopt.RMSProp())
    optimizer.step()
    grad = weakref.ref(params[0].grad)
    storage = weakref.ref(params[0].grad.untyped_storage())
    optimizer.zero_grad()
    assert grad() is None and storage() is None and params[0].grad is None


@pytest.mark.parametrize(
    "replacement",
    ["same shape", "other shape", "transposed", "other dtype", "shorter view", "same memory, other strides"],
)
def test_memory_that_is_exchanged_under_a_parameter_is_followed(replacement):
    exchange = {
        "same shape": lambda p: p.clone(),
        "other shape": lambda p: p.reshape(8, 3).clone(),
        "transposed": lambda p: p.t().clone(memory_format=torch.contiguous_format),
        "other dtype": lambda p: p.to(torch.float64),
        "shorter view": lambda p: p[:2],
        "same memory, other strides": lambda p: p.t(),
    }[replacement]
    (p,) = params = parameters([(4, 6)])
    optimizer = nbopt.torch.Optimizer(params, nbopt.GradientDescentMomentum(0.5, 0.0))
    optimizer.step()
    p.grad = None
    whole = p.data
    p.data = exchange(p.data)
    set_grads(params, 7)
    before, all_before = p.detach().clone(), whole.clone()
    optimizer.step()
    assert torch.allclose(p, before - 0.5 * p.grad)
    if replacement == "shorter view":
        assert torch.equal(whole[2:], all_before[2:])


def test_parameters_without_gradients_are_skipped_and_their_states_stay():
    params, others = parameters(), parameters()
    optimizer, same = (
        nbopt.torch.Optimizer(params, nbopt.RMSProp()),
        nbopt.torch.Optimizer(others, nbopt.RMSProp()),
    )
    for k, only in enumerate([{0, 1, 2, 3, 4}, {1, 3}, set(), {0}, {0, 1, 2, 3, 4}]):
        set_grads(params, k, only)
        kept = {
            n: (p.detach().clone(), {name: s.clone() for name, s in optimizer.state[p].items()})
            for n, p in enumerate(params)
            if n not in only
        }
        optimizer.step()
        for number, (value, states) in kept.items():
            assert torch.equal(params[number], value)
            assert all(torch.equal(optimizer.state[params[number]][name], s) for name, s in states.items())
    for number, p in enumerate(others):  # each on its own
        for k, only in enumerate([{0, 1, 2, 3, 4}, {1, 3}, set(), {0}, {0, 1, 2, 3, 4}]):
            set_grads(others, k, only & {number})
            same.step()
        assert torch.equal(p, params[number])


def test_a_step_without_any_gradient_changes_nothing_at_all():
    params = parameters(grads=False)
    optimizer = nbopt.torch.Optimizer(params, nbopt.Adam())
    optimizer.step()
    assert (
        optimizer.param_groups[0]["t"] == 0
        and not optimizer.state
        and optimizer.state_dict()["rng_state"]["updates"] == 0
    )


@pytest.mark.parametrize("runs_on", ["cpu", "reference"])
def test_random_bits_of_a_parameter_do_not_depend_on_which_others_have_gradients_or_on_groups(runs_on):
    results = []
    for only, grouped in ((None, False), ({1}, False), ({1, 2}, False), (None, True), ({1}, True)):
        params = parameters([(5000,), (3000,), (10,)], torch.bfloat16)
        set_grads(params, 1, only)
        groups = [{"params": params[:1]}, {"params": params[1:]}] if grouped else params
        nbopt.torch.Optimizer(groups, nbopt.RMSProp(stochastic_round=True), backend=runs_on, seed=0).step()
        results.append(params[1].detach().clone())
    assert all(torch.equal(bits(found), bits(results[0])) for found in results)


def test_stochastic_rounding_keeps_updates_that_nearest_rounding_loses():
    moved = []
    for stochastic in (False, True):
        p = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = nbopt.torch.Optimizer(
            [p], nbopt.GradientDescentMomentum(1e-4, 0.0, stochastic_round=stochastic)
        )
        for _ in range(100):
            p.grad = torch.ones_like(p)
            optimizer.step()
        moved.append(1 - p.detach().double().mean().item())
    assert moved[0] == 0 and abs(moved[1] - 0.01) < 0.001


@pytest.mark.parametrize("param_format", ["channels_last", "contiguous_format"])
@pytest.mark.parametrize("grad_format", ["channels_last", "contiguous_format"])
def test_channels_last_parameters_and_gradients_work(param_format, grad_format):
    plain = parameters([(4, 3, 5, 5)])
    p = torch.nn.Parameter(plain[0].detach().clone(memory_format=getattr(torch, param_format)))
    ours, same = nbopt.torch.Optimizer([p], nbopt.RMSProp()), nbopt.torch.Optimizer(plain, nbopt.RMSProp())
    for k in range(3):
        set_grads(plain, k)
        p.grad = plain[0].grad.clone(memory_format=getattr(torch, grad_format))
        ours.step()
        same.step()
    assert (
        torch.equal(p, plain[0])
        and p.stride() == torch.empty(p.shape).to(memory_format=getattr(torch, param_format)).stride()
    )
    assert torch.equal(ours.state[p]["mean_square"], same.state[plain[0]]["mean_square"])


def test_gradients_whose_strides_change_from_step_to_step_are_followed():
    (p,), (q,) = parameters([(4, 6)]), parameters([(4, 6)])
    ours, same = nbopt.torch.Optimizer([p], nbopt.RMSProp()), nbopt.torch.Optimizer([q], nbopt.RMSProp())
    for k in range(4):
        set_grads([q], k)
        p.grad = q.grad.clone() if k % 2 else q.grad.t().clone(memory_format=torch.contiguous_format).t()
        ours.step()
        same.step()
    assert torch.equal(p, q)


def test_half_precision_parameters_take_gradients_in_float32():
    p = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    if not hasattr(p, "grad_dtype"):
        pytest.skip("this PyTorch has gradients of the parameter's dtype only")
    p.grad_dtype = torch.float32
    p.grad = torch.full((8,), 0.1)
    nbopt.torch.Optimizer([p], nbopt.GradientDescentMomentum(1.0, 0.0)).step()
    assert torch.equal(p, torch.full((8,), 0.9).bfloat16())


def test_the_memory_is_the_parameters_own_and_its_version_counts_up():
    (p,) = params = parameters([(4,)])
    address, version = p.data_ptr(), p._version
    optimizer = nbopt.torch.Optimizer(params, nbopt.RMSProp())
    loss = (p * p * p).sum()  # backward needs the old values of p
    optimizer.step()
    assert p.data_ptr() == address and p._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_closure_computes_gradients_and_its_loss_comes_back():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = nbopt.torch.Optimizer(model.parameters(), nbopt.Adam(learning_rate=0.1))
    x, losses = torch.ones(5, 3), []

    def closure():
        optimizer.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        return loss

    with torch.no_grad():
        for _ in range(20):
            losses.append(optimizer.step(closure).item())
    assert losses[-1] < losses[0]


def test_step_hooks_run_and_named_parameters_keep_their_names():
    model = torch.nn.Linear(3, 1)
    optimizer = nbopt.torch.Optimizer(model.named_parameters(), nbopt.Adam())
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step()
    assert seen == ["before", "after"] and optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


# --- bad input ---


def test_a_multi_optimizer_is_refused_and_groups_recommended():
    with pytest.raises(
        ArgumentError,
        match=r'Give groups of parameters optimizers of their own: .*"optimizer": nbopt.Adam\(\)',
    ):
        nbopt.torch.Optimizer(parameters(), nbopt.MultiOptimizer({"default": nbopt.RMSProp()}))


def test_optimizers_that_are_none_or_state_no_rule_are_refused():
    class NeonsWay(nbopt.Optimizer):
        def optimize(self, layer_list, epoch):
            pass

    for wrong, message in (
        (nbopt.RMSProp, "such as nbopt.RMSProp"),
        ("adam", "such as nbopt.RMSProp"),
        (NeonsWay(), "overrides optimize"),
    ):
        with pytest.raises(ArgumentError, match=message):
            nbopt.torch.Optimizer(parameters(), wrong)


@pytest.mark.parametrize("dtype", ["complex64", "int32", "bool", "float8_e4m3fn"])
def test_parameters_that_cannot_be_trained_are_refused(dtype):
    p = torch.zeros(3, dtype=getattr(torch, dtype))
    with pytest.raises(
        DtypeError, match=f"parameter 1 of the group: tensors of dtype {dtype} can't be trained"
    ):
        nbopt.torch.Optimizer([*parameters([(2,)]), p], nbopt.RMSProp())


def test_parameters_on_a_device_without_a_backend_are_refused():
    for others in ([], parameters([(2,)])):
        with pytest.raises(LayoutError, match="parameters are on meta, and no backend works there"):
            nbopt.torch.Optimizer([*others, torch.zeros(3, device="meta")], nbopt.RMSProp())


def test_sparse_gradients_are_refused_with_what_to_do():
    embedding = torch.nn.Embedding(10, 3, sparse=True)
    optimizer = nbopt.torch.Optimizer(embedding.parameters(), nbopt.RMSProp())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(LayoutError, match=r"the gradient of parameter 0 of the group is sparse .*to_dense"):
        optimizer.step()
    embedding.weight.grad = embedding.weight.grad.to_dense()
    optimizer.step()


def test_parameters_and_gradients_that_share_memory_are_refused_and_nothing_changes():
    memory = torch.ones(8)
    params = [torch.nn.Parameter(memory[:5]), torch.nn.Parameter(memory[3:])]
    for p in params:
        p.grad = torch.ones(5)
    with pytest.raises(LayoutError, match="share memory"):
        nbopt.torch.Optimizer(params, nbopt.RMSProp()).step()
    with pytest.raises(LayoutError, match="share memory"):
        nbopt.torch.Optimizer([{"params": params[:1]}, {"params": params[1:]}], nbopt.RMSProp()).step()
    assert torch.equal(memory, torch.ones(8))
    (p,) = params = parameters([(4,)])
    optimizer = nbopt.torch.Optimizer(params, nbopt.RMSProp())
    optimizer.step()
    p.grad = p.detach()
    before = p.detach().clone()
    with pytest.raises(LayoutError, match="share memory"):
        optimizer.step()
    assert torch.equal(p, before) and optimizer.param_groups[0]["t"] == 1


def test_a_failed_step_leaves_all_groups_as_they_were_and_the_next_one_is_right():
    params, others = parameters([(4,), (4,)]), parameters([(4,), (4,)])
    optimizer = nbopt.torch.Optimizer([{"params": params[:1]}, {"params": params[1:]}], nbopt.RMSProp())
    good, params[1].grad = params[1].grad, None
    params[1].grad = torch.ones(4).to_sparse()
    with pytest.raises(LayoutError):
        optimizer.step()
    assert (
        equal(params, others) and not optimizer.state and optimizer.state_dict()["rng_state"]["updates"] == 0
    )
    params[1].grad = good
    optimizer.step()
    nbopt.torch.Optimizer(others, nbopt.RMSProp()).step()
    assert equal(params, others)


def test_a_frozen_parameter_is_skipped_until_it_gets_gradients():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    model[0].requires_grad_(False)
    optimizer = nbopt.torch.Optimizer(model.parameters(), nbopt.GradientDescentMomentum(0.1, 0.9))
    before = model[0].weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before) and len(optimizer.state) == 2
    model[0].requires_grad_(True)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before) and len(optimizer.state) == 4


# --- saving and copying ---


def saved_and_loaded(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@in_one_storage("dtype", "float32", "bfloat16")
@pytest.mark.rest("asgd-bfloat16", "adam-*", "momentum-*")
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(name, dtype):
    options = {"stochastic_round": dtype == "bfloat16"}
    if dtype == "bfloat16" and name == "adadelta":
        options["state_dtype"] = "bfloat16"
    params = parameters([(30, 5), (7,)], getattr(torch, dtype))
    optimizer = nbopt.torch.Optimizer(params, OPTIMIZERS[name](**options))
    run(optimizer, params, 3)
    saved, values = saved_and_loaded(optimizer.state_dict()), [p.detach().clone() for p in params]
    run(optimizer, params, 3, start=3)

    resumed = [torch.nn.Parameter(value) for value in values]
    again = nbopt.torch.Optimizer(resumed, OPTIMIZERS[name]())
    again.load_state_dict(saved)
    run(again, resumed, 3, start=3)
    assert equal(params, resumed)
    for p, q in zip(params, resumed):
        assert optimizer.state[p].keys() == again.state[q].keys()
        for key, state in optimizer.state[p].items():
            assert state.dtype == again.state[q][key].dtype and torch.equal(
                bits(state), bits(again.state[q][key])
            )
    assert optimizer.state_dict()["rng_state"] == again.state_dict()["rng_state"]


def test_the_state_dict_has_pytorchs_layout_and_states_by_name():
    params = parameters([(3, 2), (4,)], torch.bfloat16)
    optimizer = nbopt.torch.Optimizer(params, nbopt.Adam(learning_rate=0.5))
    run(optimizer, params, 2)
    found = optimizer.state_dict()
    assert set(found) == {"state", "param_groups", "rng_state", "skipped"}
    assert set(found["state"]) == {0, 1} and [*found["state"][0]] == ["step", "mean", "mean_square"]
    assert (
        found["param_groups"][0]["params"] == [0, 1]
        and found["param_groups"][0]["lr"] == 0.5
        and found["param_groups"][0]["t"] == 2
    )
    state = optimizer.state[params[0]]["mean"]
    assert state.dtype == torch.float32 and state.shape == (3, 2) and not state.requires_grad
    state.zero_()  # the optimizer's own memory
    before = optimizer.state[params[0]]["mean_square"].clone()
    optimizer.step()
    assert torch.allclose(state, 0.1 * params[0].grad.float()) and not torch.equal(
        before, optimizer.state[params[0]]["mean_square"]
    )


def test_loading_shares_nothing_with_the_dictionary_and_runs_hooks():
    params, others = parameters(), parameters()
    optimizer, other = (
        nbopt.torch.Optimizer(params, nbopt.RMSProp()),
        nbopt.torch.Optimizer(others, nbopt.RMSProp()),
    )
    optimizer.step()
    calls = []
    other.register_load_state_dict_pre_hook(
        lambda o, d: {**d, "param_groups": [{**d["param_groups"][0], "lr": 7.0}]}
    )
    other.register_load_state_dict_post_hook(lambda o: calls.append(o))
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 7.0 and calls == [other]
    kept = optimizer.state[params[0]]["mean_square"].clone()
    run(other, others, 2)
    assert torch.equal(optimizer.state[params[0]]["mean_square"], kept)


def test_a_state_dict_of_another_optimizer_or_of_other_shapes_is_refused_and_nothing_changes():
    params = parameters([(3, 2)])
    optimizer = nbopt.torch.Optimizer(params, nbopt.RMSProp())
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    theirs = torch.optim.RMSprop(parameters([(3, 2)]))
    ours = nbopt.torch.Optimizer(parameters([(3, 2)]), nbopt.Adam())
    smaller = nbopt.torch.Optimizer(parameters([(3,)]), nbopt.RMSProp())
    for other in (theirs, ours, smaller):
        other.step()
        with pytest.raises(StateError):
            optimizer.load_state_dict(other.state_dict())
    renamed = optimizer.state_dict()
    renamed["state"] = {0: {"square_avg": torch.zeros(3, 2)}}
    del renamed["param_groups"][0]["optimizer"]  # as before state dicts had the name of the class
    with pytest.raises(StateError, match=r"keeps the states .*mean_square.*square_avg"):
        optimizer.load_state_dict(renamed)
    after = optimizer.state_dict()
    assert (
        torch.equal(before["state"][0]["mean_square"], after["state"][0]["mean_square"])
        and before["param_groups"] == after["param_groups"]
    )
    optimizer.step()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_go_on_as_the_original_does(copied):
    params = parameters([(30, 5), (7,)], torch.bfloat16)
    be = nbopt.backends.new_backend("cpu", rng_seed=3, num_threads=1)
    optimizer = nbopt.torch.Optimizer(params, nbopt.Adam(stochastic_round=True), backend=be)
    run(optimizer, params, 2)
    others, other = copied((params, optimizer))
    run(optimizer, params, 2, start=2)
    run(other, others, 2, start=2)
    assert equal(params, others) and other._backend is not be and other._backend.num_threads == 1


def test_a_group_added_later_is_trained_and_saved():
    params = parameters([(4,), (5,)])
    optimizer = nbopt.torch.Optimizer(params[:1], nbopt.RMSProp())
    optimizer.step()
    optimizer.add_param_group({"params": params[1:], "lr": 0.5})
    optimizer.step()
    again = nbopt.torch.Optimizer(
        [{"params": parameters([(4,)])}, {"params": parameters([(5,)])}], nbopt.RMSProp()
    )
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert [group["t"] for group in again.param_groups] == [2, 1] and again.param_groups[1]["lr"] == 0.5
    assert torch.equal(
        again.state[again.param_groups[1]["params"][0]]["mean_square"],
        optimizer.state[params[1]]["mean_square"],
    )


def test_momentum_that_is_turned_on_later_gets_its_state():
    params = parameters([(4,)])
    optimizer = nbopt.torch.Optimizer(params, nbopt.GradientDescentMomentum(0.1, 0.0))
    optimizer.step()
    assert [*optimizer.state[params[0]]] == ["step"]
    optimizer.param_groups[0]["momentum_coef"] = 0.9
    optimizer.step()
    assert torch.allclose(optimizer.state[params[0]]["velocity"], -0.1 * params[0].grad)


# --- mixed precision ---


def test_the_gradient_scaler_unscales_and_skips_steps_with_infinite_gradients():
    model = torch.nn.Linear(4, 1)
    optimizer = nbopt.torch.Optimizer(model.parameters(), nbopt.GradientDescentMomentum(0.1, 0.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    x = torch.ones(2, 4)
    for value, unscale in ((1.0, False), (1.0, True), (float("inf"), False)):
        optimizer.zero_grad()
        before = model.weight.detach().clone()
        scaler.scale(model(x).mean() * value).backward()
        if unscale:
            scaler.unscale_(optimizer)
            assert torch.equal(model.weight.grad, torch.ones(1, 4))
        scaler.step(optimizer)
        scaler.update()
        moved = torch.zeros(1, 4) if value == float("inf") else 0.1 * torch.ones(1, 4)
        assert torch.allclose(before - model.weight, moved, atol=1e-6)
    assert optimizer.param_groups[0]["t"] == 2 and scaler.get_scale() == 4.0


# --- imports ---


def test_nbopt_itself_never_imports_torch():
    code = (
        "import sys, numpy as np, nbopt; nbopt.set_backend('reference').wrap(np.ones(3)); assert 'torch' not "
        "in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shapes_that_differ_are_refused():
    (p,) = params = parameters([(4, 6)])
    optimizer = nbopt.torch.Optimizer(params, nbopt.RMSProp())
    optimizer.step()
    p.data = torch.zeros(6, 2)  # the gradient stays as it was
    with pytest.raises(
        ShapeError, match=r"parameter 0 of the group: it has shape \(6, 2\) and its gradient \(4, 6\)"
    ):
        optimizer.step()


# --- nbopt's own loss scale, and steps that are skipped ---


def test_a_loss_scale_in_a_tensor_is_the_users_own_and_read_at_every_step():
    params = parameters([(4,)])
    scale = torch.tensor([2.0])
    prototype = nbopt.GradientDescentMomentum(1.0, 0.0)
    prototype.loss_scale = scale
    optimizer = nbopt.torch.Optimizer(params, prototype)
    for value in (2.0, 8.0):
        scale.fill_(value)
        before = params[0].detach().clone()
        optimizer.step()
        assert torch.allclose(params[0], before - params[0].grad / value)
    assert optimizer.loss_scale is scale


def test_a_loss_scale_and_skipping_hold_for_all_groups_those_that_come_later_too():
    first, second = parameters([(4,), (4,)])
    optimizer = nbopt.torch.Optimizer([first], nbopt.GradientDescentMomentum(1.0, 0.0))
    optimizer.loss_scale, optimizer.skip_nonfinite = 4.0, True
    optimizer.add_param_group({"params": [second], "optimizer": nbopt.RMSProp()})
    before = [p.detach().clone() for p in (first, second)]
    second.grad[1] = float("nan")
    optimizer.step()
    assert torch.equal(first, before[0]) and torch.equal(second, before[1])
    assert optimizer.skipped == [1, 1] and [group["t"] for group in optimizer.param_groups] == [1, 1]
    assert (optimizer.loss_scale, optimizer.skip_nonfinite) == (4.0, True)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (other.loss_scale, other.skip_nonfinite, other.skipped) == (4.0, True, [1, 1])
    second.grad[1] = 1.0
    optimizer.step()
    assert torch.allclose(first, before[0] - first.grad / 4) and not torch.equal(second, before[1])


@pytest.mark.parametrize(
    "attribute, value", [("loss_scale", 0), ("loss_scale", torch.ones(2)), ("skip_nonfinite", 1)]
)
def test_a_loss_scale_or_flag_that_makes_no_sense_is_refused(attribute, value):
    optimizer = nbopt.torch.Optimizer(parameters(), nbopt.RMSProp())
    with pytest.raises(ArgumentError, match=attribute):
        setattr(optimizer, attribute, value)
    assert (optimizer.loss_scale, optimizer.skip_nonfinite) == (1.0, False)


def test_the_counts_of_skipped_steps_are_saved():
    params = parameters([(4,)])
    optimizer = nbopt.torch.Optimizer(params, nbopt.RMSProp())
    optimizer.skip_nonfinite = True
    params[0].grad[0] = float("inf")
    optimizer.step()
    other = nbopt.torch.Optimizer(parameters([(4,)]), nbopt.RMSProp())
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert other.skipped == [1] and other.param_groups[0]["t"] == 1


# --- mistakes ---


@pytest.mark.parametrize("given", [nbopt.RMSProp, None, "RMSProp", [1]], ids=repr)
def test_what_is_no_optimizer_is_refused(given):
    with pytest.raises(ArgumentError, match=r"must be one of nbopt's, such as nbopt.RMSProp\(\)"):
        nbopt.torch.Optimizer(parameters(), given)


@pytest.mark.parametrize("group", [None, [1, 2], {"lr": 0.1}, {}], ids=repr)
def test_what_is_no_group_is_refused(group):
    optimizer = nbopt.torch.Optimizer(parameters(), nbopt.RMSProp())
    with pytest.raises(ArgumentError, match="a group is a dict, such as"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    optimizer.step()


def test_parameters_without_a_shape_yet_are_refused_and_no_group_is_added():
    optimizer = nbopt.torch.Optimizer(parameters(), nbopt.RMSProp())
    with pytest.raises(LayoutError, match="no shape yet: call the model"):
        optimizer.add_param_group({"params": [torch.nn.parameter.UninitializedParameter()]})
    assert len(optimizer.param_groups) == 1
    optimizer.step()


@pytest.mark.parametrize("bad", [-1, 1.5, "2", None, True, 10**400], ids=lambda bad: f"{bad!r:.8}")
def test_a_number_of_steps_that_is_none_is_refused(bad):
    params = parameters()
    optimizer = nbopt.torch.Optimizer(params, nbopt.Adam())
    before = [p.detach().clone() for p in params]
    optimizer.param_groups[0]["t"] = bad
    with pytest.raises(ArgumentError, match="t must be an int from 0 on"):
        optimizer.step()
    assert equal(params, before)
    with pytest.raises(ArgumentError, match="t must be an int from 0 on"):
        nbopt.torch.Optimizer([{"params": params, "t": bad}], nbopt.Adam())


def test_a_hyper_parameter_that_was_taken_out_of_its_group_is_missed():
    optimizer = nbopt.torch.Optimizer(parameters(), nbopt.RMSProp())
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(ArgumentError, match="a group has no 'lr' any more"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"], ids=str)
def test_the_dtype_of_states_can_be_pytorchs(dtype):
    params = parameters([(4,)] * 2)
    groups = [{"params": params[:1]}, {"params": params[1:], "state_dtype": dtype}]
    optimizer = nbopt.torch.Optimizer(groups, nbopt.RMSProp(state_dtype=torch.float64))
    optimizer.step()
    assert [optimizer.state[p]["mean_square"].dtype for p in params] == [torch.float64, torch.bfloat16]
    for bad in (torch.int8, "int8"):
        optimizer.param_groups[0]["state_dtype"] = bad
        with pytest.raises(DtypeError, match="state_dtype must be a dtype"):
            optimizer.step()


def test_an_optimizer_whose_arguments_cant_be_a_groups_keys_is_refused():
    class Forgetful(nbopt.Optimizer):
        def __init__(self, rate=0.1):
            super().__init__()

        def rule(self, step, param, grad):
            param[:] = param - grad

    class Misnamed(Forgetful):
        def __init__(self, params=0.1):
            super().__init__()
            self.params = params

    for own, message in ((Forgetful, "'rate': keep each argument"), (Misnamed, "rename params")):
        with pytest.raises(ArgumentError, match=message):
            nbopt.torch.Optimizer(parameters(), own())


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


def with_in_group(key, value):
    return lambda state: {**state, "param_groups": [{**state["param_groups"][0], key: value}]}


BROKEN = {
    "None": lambda state: None,
    "a list": lambda state: [1],
    "nothing": lambda state: {},
    "no groups": lambda state: without(state, "param_groups"),
    "no state": lambda state: without(state, "state"),
    "groups that are none": lambda state: {**state, "param_groups": [1]},
    "too few groups": lambda state: {**state, "param_groups": []},
    "too many parameters": lambda state: with_in_group("params", [0, 1, 2])(state),
    "a learning rate below 0": with_in_group("lr", -1.0),
    "a word for t": with_in_group("t", "a"),
    "a state that is None": lambda state: {**state, "state": {0: {"mean_square": None}}},
    "states that are None": lambda state: {**state, "state": {0: None}},
    "a state of ints": lambda state: {
        **state,
        "state": {0: {"mean_square": torch.ones(4, dtype=torch.int32)}},
    },
    "a state of NumPy's": lambda state: {**state, "state": {0: {"mean_square": np.ones(4, np.float32)}}},
    "random bits of no kind": lambda state: {**state, "rng_state": {"seed": -1, "updates": "x"}},
    "counts of skipped steps of no kind": lambda state: {**state, "skipped": [-1]},
    "counts of skipped steps of other groups": lambda state: {**state, "skipped": [0, 0]},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_state_dict_that_is_broken_changes_nothing(name):
    params = parameters([(4,)])
    optimizer = nbopt.torch.Optimizer(params, nbopt.RMSProp())
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    other = nbopt.torch.Optimizer(parameters([(4,)]), nbopt.RMSProp(learning_rate=1.0))
    run(other, other.param_groups[0]["params"], 3)
    with pytest.raises(NboptError):
        optimizer.load_state_dict(BROKEN[name](other.state_dict()))
    after = optimizer.state_dict()
    assert torch.equal(before["state"][0].pop("mean_square"), after["state"][0].pop("mean_square"))
    assert before == after
    optimizer.step()


def test_a_loss_scale_that_gets_other_memory_is_read_there():
    scale = torch.tensor([1.0])
    optimizer = nbopt.GradientDescentMomentum(1.0, 0.0)
    optimizer.loss_scale = scale
    param = torch.nn.Parameter(torch.zeros(3))
    param.grad = torch.full((3,), 4.0)
    trainer = nbopt.torch.Optimizer([param], optimizer)
    trainer.step()
    scale.data = torch.tensor([4.0])
    trainer.step()
    assert param.tolist() == [-5.0] * 3
