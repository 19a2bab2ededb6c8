"""Tests of the CUDA backend that the simulator and a real GPU run alike.

test_cuda_sim.py and test_gpu.py take them from here. They take the fixture `cuda`, a NumbaCUDA with batch
size 8. Arrays are small: a simulated operation takes microseconds. On a GPU each kernel takes seconds to
compile, so the plain run has cases that cover the matrices (see conftest.py); in the simulator it has a few
more.
"""

import gc
import pickle
import re
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import OPTIMIZERS, same_bits, special_values, thorough_but, ulp_distance

import nbopt
from nbopt import errors
from nbopt.language.ops import PRIMITIVES
from nbopt_backends.meaning.tree import TILE

DEVICES = ("gpu", "simulated")  # where the plain run leaves out most of the largest matrices
SHAPES = [(37,), (3, 5), (), (0, 4), (64,), (2, 3, 7)]
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_16 = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


def foreign(tensor, protocol="interface", **changes):
    """An array of another library, of which one of the two protocols is all that is known."""
    interface = {**tensor.__cuda_array_interface__, "stream": None, **changes}

    class Interface:
        __cuda_array_interface__ = interface
        memory = tensor

    class Capsules:
        def __dlpack__(self, **options):
            return tensor.__dlpack__(**options)

        def __dlpack_device__(self):
            return tensor.__dlpack_device__()

    return {"interface": Interface, "dlpack": Capsules}[protocol]()


class Torchlike:
    """What the backend asks a PyTorch tensor.

    Its memory can be exchanged under the same object, as ``p.data = ...`` does.
    """

    is_cuda = True
    layout = "torch.strided"

    def __init__(self, tensor, negative=False):
        self.data, self.negative = tensor, negative

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: f"torch.{self.data.dtype.name}")

    def data_ptr(self):
        return self.data.storage.address

    def get_device(self):
        return 0

    def is_contiguous(self):
        return True

    def is_neg(self):
        return self.negative

    def resolve_neg(self):
        return Torchlike(self.data.be.array(-self.data.get(), self.data.dtype))

    def stride(self):
        return tuple(step // 4 for step in self.data.storage.strides)


def pairs_of(be, seed, dtypes, shapes=SHAPES):
    """(parameter, gradient) tensors with the same values on any backend."""
    rng = np.random.default_rng(seed)
    chosen = [dtypes[k % len(dtypes)] for k in range(len(shapes))]
    return [
        (be.array(rng.standard_normal(s), d), be.array(rng.standard_normal(s), d))
        for s, d in zip(shapes, chosen)
    ]


def trained(be, optimizer, dtypes=("float32",), steps=3, shapes=SHAPES, pairs=pairs_of):
    """Values of all parameters and states after some steps, each with new gradients."""
    with nbopt.use_backend(be):
        layer = nbopt.Parameters(*pairs(be, 1, dtypes, shapes))
        for epoch in range(steps):
            optimizer.optimize([layer], epoch)
            layer.grads = [grad for _, grad in pairs(be, 2 + epoch, dtypes, shapes)]
        return [p.get() for p in layer.params] + [state.get() for states in layer.states for state in states]


def reference():
    return nbopt.backends._load("reference")(rng_seed=0, batch_size=8)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert same_bits(a, b)


# On a GPU float64 is in the plain run of what reduces, and in test_gpu.py.
@pytest.mark.parametrize(
    "dtypes",
    thorough_but([("float32",), ("float64",), ("float32", "float64")], ("float32",), where=DEVICES),
    ids="-".join,
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_the_references_bits(cuda, name, dtypes):
    assert_same(trained(cuda, OPTIMIZERS[name](), dtypes), trained(reference(), OPTIMIZERS[name](), dtypes))


def test_both_rules_of_radam_have_the_references_bits(cuda):
    assert_same(trained(cuda, nbopt.RAdam(), steps=8), trained(reference(), nbopt.RAdam(), steps=8))


@pytest.mark.parametrize(
    "dtypes",
    thorough_but([("float32",), ("float32", "float64")], ("float32", "float64"), where=["gpu"]),
    ids="-".join,
)
@pytest.mark.rest(where=["simulated"])
def test_clips_have_the_references_bits(cuda, dtypes):
    def optimizer():
        return nbopt.RMSProp(gradient_clip_norm=0.3, gradient_clip_value=0.02, param_clip_value=1.5)

    shapes = [*SHAPES, (TILE + 77,), (5,)]
    assert_same(
        trained(cuda, optimizer(), dtypes, 2, shapes), trained(reference(), optimizer(), dtypes, 2, shapes)
    )


@pytest.mark.rest(where=["gpu", "simulated"])
def test_the_norm_clip_goes_by_c_order_for_strided_gradients(cuda):
    def pairs(be, seed, dtypes, shapes):
        rng = np.random.default_rng(seed)
        param, grad = be.array(rng.standard_normal((30, 400))), be.array(rng.standard_normal((60, 401)))
        return [(param, grad[::2, 400:0:-1])]

    def optimizer():
        return nbopt.GradientDescentMomentum(0.1, 0.9, gradient_clip_norm=0.1)

    assert_same(
        trained(cuda, optimizer(), pairs=pairs, steps=2),
        trained(reference(), optimizer(), pairs=pairs, steps=2),
    )


@pytest.mark.parametrize(
    "dtype", thorough_but(["float32", "float64", "float16", "bfloat16"], "float64", "float16", where=["gpu"])
)
@pytest.mark.rest("float64", where=["gpu"])
def test_clip_gradient_norm_gives_the_references_factor(cuda, dtype):
    factors = []
    for be in (cuda, reference()):
        with nbopt.use_backend(be):
            layer = nbopt.Parameters(*pairs_of(be, 5, (dtype,), [(TILE + 5,), (3, 4)]))
            factors.append(nbopt.Adam().clip_gradient_norm(layer.get_params(), 2.0))
    assert factors[0] == factors[1] < 1


class EveryOp(nbopt.Optimizer):
    """Its states are three operands, an integer, and what each op makes of them.

    It is one kernel, since to compile one for each takes long.
    """

    state_names = ("a", "b", "c", "k", *PRIMITIVES)

    def rule(self, step, param, grad, a, b, c, k, *results):
        for op, out in zip(PRIMITIVES.values(), results):
            operands = (a, k) if op.name == "ldexp" else (a, b, c)[: op.arity]
            apply = partial(self.be.shift, value=False) if op.name == "ldexp" else getattr(self.be, op.name)
            out[:] = apply(*operands)


def assert_every_op(be, dtype):
    """Check every op's results on a backend: the reference's bits, or within 4 ulp if it is not exact."""
    rng = np.random.default_rng(7)
    operands = [special_values(dtype, rng, 600) for _ in range(3)] + [
        np.round(rng.standard_normal(600) * 100).astype(dtype)
    ]
    results = []
    for backend in (be, reference()):
        with nbopt.use_backend(backend):
            layer = nbopt.Parameters((backend.zeros(600, dtype), backend.zeros(600, dtype)))
            layer.states[0].extend(
                [
                    *(backend.array(value, dtype) for value in operands),
                    *(backend.zeros(600, dtype) for _ in PRIMITIVES),
                ]
            )
            EveryOp().optimize([layer], 0)
            results.append([state.get() for state in layer.states[0][len(operands) :]])
    for op, found, wanted in zip(PRIMITIVES.values(), *results, strict=True):
        assert wanted.any()
        assert same_bits(found, wanted) if op.exact else ulp_distance(found, wanted).max() <= 4, op.name


@each_dtype
@pytest.mark.rest("float32", where=["gpu"])
def test_every_op(cuda, dtype):
    assert_every_op(cuda, dtype)


@each_dtype
@pytest.mark.parametrize(
    "op, axis",
    [(op, axis) for op in ("sum", "max", "min") for axis in (None, 0, 1)] + [("argmax", 1), ("argmin", 1)],
)
@pytest.mark.covering
@pytest.mark.rest(where=["simulated"])
def test_reductions_have_the_references_bits(cuda, op, axis, dtype):
    rng = np.random.default_rng(3)
    n = 12 if axis == 0 else 300
    values = rng.standard_normal((9, n)).astype(dtype)
    values[2, 5] = values[2, n - 2] = values[2].max() + 1
    values[4] = np.where(rng.random(n) < 0.5, 0.0, -0.0)
    if op != "sum":
        values[6, n // 2] = np.nan
    results = []
    for be in (cuda, reference()):
        t = be.array(values, dtype)
        out = be.empty((1 if axis in (None, 0) else 9, 1 if axis in (None, 1) else n), dtype)
        getattr(be, op)(t, axis=axis, out=out)
        results.append(out.get())
    assert same_bits(*results)


@pytest.mark.parametrize("n", [0, 1, TILE - 1, TILE, 2 * TILE + 300])
def test_sums_of_any_length(cuda, n):
    """Of a tensor and of rows. The last rows are of -0, and of what is too large for float32 in sum."""
    values = np.random.default_rng(n).standard_normal((3, n)).astype(np.float32)
    values[1:] = [[-0.0], [3e38]]
    found = []
    for be in (cuda, reference()):
        whole, rows = be.empty((1, 1)), be.empty((3, 1))
        be.sum(be.array(values), out=whole)
        be.sum(be.array(values), axis=1, out=rows)
        found.append([whole.get(), rows.get()])
    assert_same(*found)


class Lamb(nbopt.Optimizer):
    """Its pass over elements reduces twice; one number of each parameter is used in the next one."""

    state_names = ("mean", "mean_square")

    def __init__(self, learning_rate=0.01, stochastic_round=False, **options):
        super().__init__(**options)
        self.stochastic_round = stochastic_round
        self.learning_rate, self.beta_1, self.beta_2, self.wdecay = learning_rate, 0.9, 0.999, 0.01

    def rule(self, step, param, grad, mean, mean_square):
        be, b1, b2 = self.be, self.beta_1, self.beta_2
        mean[:] = b1 * mean + (1 - b1) * grad
        mean_square[:] = b2 * mean_square + (1 - b2) * be.square(grad)
        update = (
            mean / (1 - b1**step.t) / (be.sqrt(mean_square / (1 - b2**step.t)) + 1e-6) + self.wdecay * param
        )
        ratio = be.norm(param) / be.norm(update)
        param[:] = param - step.lr * be.where(be.finite(ratio) * ratio > 0, ratio, 1.0) * update


class Careful(nbopt.Optimizer):
    """Every other kind of reduction, a power that only the device knows, and a condition of its own."""

    state_names = ("momentum",)

    def __init__(self, bound=1e9, stochastic_round=False, **options):
        super().__init__(**options)
        self.stochastic_round = stochastic_round
        self.learning_rate, self.bound = 0.1, bound

    def rule(self, step, param, grad, momentum):
        be = self.be
        norm = step.norm(grad)
        step.only_if(norm < self.bound)
        spread = be.max(grad) - be.min(grad)
        steepest = step.max(be.max(be.absolute(grad))) - step.min(param)
        momentum[:] = 0.9 * momentum + grad / (norm + spread) + be.mean(grad) / param.size
        param[:] = param - step.lr * momentum * (1 + steepest) ** -2 * (1.0 + norm) ** 3


REDUCED = {"lamb": Lamb, "careful": Careful, "lamb, norm clip": lambda **options: clipped(Lamb(**options))}
TILED = [(75, 70), (64,), (5, 4, 33), (0, 3)]
HOW = {
    "float32": (("float32",), {}),
    "float64": (("float64",), {}),
    "mixed": (("float32", "float64", "bfloat16"), {}),
    "bfloat16, all rounded": (("bfloat16",), {"stochastic_round": True, "state_dtype": "bfloat16"}),
    "float16, float32 states": (("float16",), {"stochastic_round": 3}),
}


def clipped(optimizer):
    optimizer.gradient_clip_norm = 0.1
    return optimizer


# Each of these takes a compiler for a GPU up to 30 s. In float32 they run over many tensors below.
ON_A_DEVICE = [("lamb", "bfloat16, all rounded"), ("careful", "float64")]


@pytest.mark.parametrize(
    ("name", "how"),
    thorough_but([(name, how) for name in REDUCED for how in HOW], *ON_A_DEVICE, where=DEVICES, several=True),
)
@pytest.mark.rest("lamb-*", where=["gpu"])
def test_rules_that_reduce(cuda, name, how):
    """Norms and other reductions within a step have the bits of the reference, whatever is stored how."""
    dtypes, options = HOW[how]

    def run(be):
        return trained(be, REDUCED[name](**options), dtypes, 2, TILED)

    assert_same(run(cuda), run(reference()))


@pytest.mark.parametrize("name", thorough_but(REDUCED, "careful", "lamb, norm clip", where=["simulated"]))
@pytest.mark.rest(where=["gpu", "simulated"])
def test_reductions_over_many_tensors(cuda, name):
    """300 tensors, some of them empty, make the same few launches as one."""
    launched = []

    def run(be, shapes):
        before = be.launches
        values = trained(be, REDUCED[name](), ("float32",), 1, shapes)
        launched.append(be.launches - before)
        return values

    shapes = [*((k % 5,) for k in range(300)), (300, 70)]
    found = run(cuda, shapes)
    run(cuda, [(3,)])
    assert launched[0] == launched[1]
    assert_same(found, run(reference(), shapes))


@pytest.mark.parametrize("rounding", thorough_but([False, True], True, where=DEVICES))
@pytest.mark.parametrize("name", thorough_but(["lamb", "careful"], "careful", where=DEVICES))
@pytest.mark.rest
def test_reductions_of_strided_tensors(cuda, name, rounding):
    """They go by C order; the tensors' memory does not matter, nor where it begins."""

    def pairs(be, seed, dtypes, shapes):
        rng = np.random.default_rng(seed)
        a, b, c, d = (be.array(rng.standard_normal((70, 134)), "bfloat16") for _ in range(4))
        e, f = (be.array(rng.standard_normal(301)) for _ in range(2))
        return [(a[::2, 132:0:-1], b[:35, 1:133]), (c[:5], d[1:6]), (e[1:], f[:-1])]

    def run(be):
        return trained(
            be, REDUCED[name](stochastic_round=rounding, state_dtype="bfloat16"), pairs=pairs, steps=2
        )

    assert_same(run(cuda), run(reference()))


@pytest.mark.parametrize("dtype", thorough_but(["float32", "float64"], "float32", where=["gpu"]))
@pytest.mark.rest("float32", where=["simulated"])
@pytest.mark.rest(where=["gpu"])
def test_what_tiles_are_folded_to(cuda, dtype):
    """Signed zeros, infinities and NaN come through the folds of tiles of any length as in the reference."""

    class Extremes(nbopt.Optimizer):
        state_names = ("sums", "largest", "smallest")

        def rule(self, step, param, grad, sums, largest, smallest):
            be = self.be
            sums[:], largest[:], smallest[:] = be.sum(grad), be.max(grad), be.min(grad)
            param[:] = param + be.sum(param) * 0.0

    rng, sizes = np.random.default_rng(5), [1, 2, 3, 5, 255, 257, 1024, 1025, 2049, 4095, 4097]
    grads = [special_values(dtype, rng, n) if n < 1000 else rng.standard_normal(n) for n in sizes] + [
        np.full(7, -0.0)
    ]
    results = []
    for be in (cuda, reference()):
        with nbopt.use_backend(be):
            layer = nbopt.Parameters(*((be.zeros(len(grad), dtype), be.array(grad, dtype)) for grad in grads))
            Extremes().optimize([layer], 0)
            results.append(
                [tensor.get() for tensor in layer.params]
                + [state.get() for states in layer.states for state in states]
            )
    assert_same(*results)
    assert all(np.signbit(value).all() for value in results[0][-3:])


def test_a_rule_with_a_condition_of_its_own(cuda, monkeypatch):
    """Where the condition is false nothing is stored, and the host reads nothing back."""

    def run(be):
        with nbopt.use_backend(be):
            layer, optimizer = nbopt.Parameters(*pairs_of(be, 1, ("float32",))), Careful(bound=2.0)
            values = []
            for epoch, factor in enumerate((0.1, 100.0, np.nan, 0.2)):
                layer.grads = [
                    be.array(grad.get() * factor) for _, grad in pairs_of(be, epoch + 2, ("float32",))
                ]
                with monkeypatch.context() as patch:
                    if be is cuda and epoch:
                        patch.setattr(cuda.device, "copy_out", None)
                        patch.setattr(cuda.device, "synchronize", None)
                    optimizer.optimize([layer], epoch)
                values += [p.get() for p in layer.params] + [
                    state.get() for states in layer.states for state in states
                ]
            return values

    found = run(cuda)
    assert_same(found, run(reference()))
    once = len(found) // 4
    assert_same(found[once : 2 * once], found[:once])
    assert_same(found[2 * once : 3 * once], found[:once])
    assert not same_bits(found[3 * once], found[0])


def test_views_broadcasting_and_overlap_are_numpys(cuda):
    a = np.arange(60, dtype=np.float32).reshape(6, 10)
    t = cuda.array(a)
    t[1:, ::-2] = t[:-1, 1::2] * 2 + t[0:1, 1::2]
    a[1:, ::-2] = a[:-1, 1::2] * 2 + a[0:1, 1::2]
    assert same_bits(t.get(), a)
    t[:, 3] = 7
    a[:, 3] = 7
    assert same_bits(t[2:5, 1:].get(), np.ascontiguousarray(a[2:5, 1:]))


def test_tensors_that_do_not_start_at_16_bytes(cuda):
    def pairs(be, seed, dtypes, shapes):
        rng = np.random.default_rng(seed)
        whole = [be.array(rng.standard_normal(101)) for _ in range(4)]
        return [(whole[0][1:], whole[1][:-1]), (whole[2][2:75], whole[3][3:76])]

    assert_same(trained(cuda, nbopt.Adam(), pairs=pairs), trained(reference(), nbopt.Adam(), pairs=pairs))


def test_a_step_is_one_launch_and_the_second_compiles_nothing(cuda):
    layer = nbopt.Parameters(*pairs_of(cuda, 1, ("float32",)))
    optimizer = nbopt.Adam()
    optimizer.optimize([layer], 0)
    launches, compilations = cuda.launches, cuda.compilations
    for epoch in range(1, 4):
        optimizer.learning_rate /= 2
        cuda.bsz += 1
        layer.grads = [grad for _, grad in pairs_of(cuda, epoch, ("float32",))]
        launched = cuda.launches
        optimizer.optimize([layer], epoch)
        assert cuda.launches == launched + 1
    assert launches and cuda.compilations == compilations


def test_a_step_with_the_norm_clip_reads_nothing_back_and_waits_for_nothing(cuda, monkeypatch):
    layer = nbopt.Parameters(*pairs_of(cuda, 1, ("float32",)))
    optimizer = nbopt.RMSProp(gradient_clip_norm=0.1)
    optimizer.optimize([layer], 0)
    before = layer.params[0].get()
    grads = [grad for _, grad in pairs_of(cuda, 2, ("float32",))]

    def refused(*arguments):
        raise AssertionError("the host waits in a step")

    with monkeypatch.context() as patch:
        patch.setattr(cuda.device, "copy_out", refused)
        patch.setattr(cuda.device, "synchronize", refused)
        layer.grads = grads
        optimizer.optimize([layer], 1)
    assert not same_bits(before, layer.params[0].get())


@pytest.mark.rest(where=["simulated"])
def test_what_a_step_copies_to_the_device(cuda, monkeypatch):
    layer = nbopt.Parameters(*pairs_of(cuda, 1, ("float32",)))
    optimizer = nbopt.GradientDescentMomentum(0.1, 0.9, gradient_clip_norm=1.0)
    optimizer.optimize([layer], 0)
    optimizer.optimize([layer], 1)
    new = pairs_of(cuda, 2, ("float32",))[0][1]
    copies = []
    copy_from = cuda.device.copy_from
    monkeypatch.setattr(
        cuda.device,
        "copy_from",
        lambda place, size, *where: (copies.append(size), copy_from(place, size, *where)),
    )
    optimizer.optimize([layer], 2)
    assert not copies  # nothing has changed
    optimizer.learning_rate = 0.2
    optimizer.optimize([layer], 3)
    layer.set_grad(0, new)
    optimizer.optimize([layer], 4)
    assert len(copies) == 2 and copies[0] < copies[1] < 1024  # the scalars; the tables too


@pytest.mark.parametrize("protocol", ["interface", "dlpack"])
def test_foreign_arrays_are_used_without_a_copy(cuda, protocol):
    owner = cuda.array(np.arange(12.0).reshape(3, 4))
    view = owner[:, 1:3]
    t = cuda.wrap(foreign(view, protocol))
    t[:] = t * 10
    assert t.shape == (3, 2) and t.dtype == np.float32
    assert owner.get().tolist() == [[0, 10, 20, 3], [4, 50, 60, 7], [8, 90, 100, 11]]


def test_an_exported_array_outlives_its_tensor(cuda):
    t = cuda.array(np.arange(5.0))
    capsules = [t.__dlpack__()]
    exporter = SimpleNamespace(__dlpack__=lambda **options: capsules.pop(), __dlpack_device__=lambda: (2, 0))
    again = cuda.wrap(exporter)
    del t, exporter
    gc.collect()
    others = [cuda.ones(5) for _ in range(20)]  # would get the memory if it were free
    assert again.get().tolist() == [0, 1, 2, 3, 4] and len(others) == 20


def test_memory_that_is_exchanged_under_the_same_object_is_noticed(cuda):
    first, second = cuda.array(np.zeros(20)), cuda.array(np.ones(20))
    param = Torchlike(first)
    layer = nbopt.Parameters((param, cuda.ones(20)))
    optimizer = nbopt.GradientDescentMomentum(1.0, 0.0)
    optimizer.optimize([layer], 0)
    optimizer.optimize([layer], 1)
    param.data = second
    optimizer.optimize([layer], 2)
    assert (first.get() == -2 / 8).all() and (second.get() == 1 - 1 / 8).all()
    param.data = cuda.ones(21)
    with pytest.raises(errors.LayoutError, match="wrap it again"):
        optimizer.optimize([layer], 3)


def test_negative_bit_on_the_device(cuda):
    """Gradients and loss scales with PyTorch's negative bit are read right in every step.

    Parameters with it are refused.
    """
    memory = cuda.array([-1.0, 2.0])
    param, grad = cuda.zeros(2), Torchlike(memory, negative=True)
    # The learning rate is the batch size, so a step is the gradient.
    layer, optimizer = nbopt.Parameters((param, grad)), nbopt.GradientDescentMomentum(8.0, 0.0)
    optimizer.optimize([layer], 0)
    assert param.get().tolist() == [-1, 2]
    memory.set([3.0, -1.0])
    optimizer.loss_scale = Torchlike(cuda.array([-2.0]), negative=True)
    optimizer.optimize([layer], 0)
    assert param.get().tolist() == [0.5, 1.5]
    with pytest.raises(errors.LayoutError, match=r"negative bit.*resolve_neg\(\)"):
        optimizer.optimize([nbopt.Parameters((grad, cuda.ones(2)))], 0)
    assert memory.get().tolist() == [3, -1]


def test_dtype_exchanged_under_the_same_object(cuda):
    """Memory of another dtype under the same gradient is never read in the old one."""
    param, grad = cuda.zeros(4), Torchlike(cuda.ones(4, "float16"))
    layer, optimizer = nbopt.Parameters((param, grad)), nbopt.GradientDescentMomentum(8.0, 0.0)
    optimizer.optimize([layer], 0)
    grad.data = cuda.ones(4, "bfloat16")
    with pytest.raises(errors.LayoutError, match=r"dtype float16 .* dtype bfloat16.*wrap it again"):
        optimizer.optimize([layer], 0)
    layer.grads = [grad]
    optimizer.optimize([layer], 0)
    assert param.get().tolist() == [-2] * 4


def test_shared_elements_on_the_device(cuda):
    """A gradient whose elements share memory is only read, and gives the bits of a copy."""
    row = cuda.array([1.0, 2.0, 3.0], "float32")
    shared = cuda.wrap(foreign(row, shape=(4, 3), strides=(0, 4)))
    results = []
    for grad in (shared, cuda.array(np.tile([1.0, 2.0, 3.0], (4, 1)), "float32")):
        param = cuda.ones((4, 3))
        nbopt.RMSProp(gradient_clip_norm=0.1).optimize([nbopt.Parameters((param, grad))], 0)
        results.append(param.get())
    assert_same(results[:1], results[1:])
    with pytest.raises(errors.LayoutError, match="share memory with each other"):
        nbopt.RMSProp().optimize([nbopt.Parameters((shared, cuda.ones((4, 3))))], 0)


def test_tensors_without_memory(cuda):
    """A wrapper tensor, which has no address, is refused."""
    tensor = Torchlike(cuda.ones(3))
    tensor.data_ptr = lambda: 0
    with pytest.raises(errors.LayoutError, match=r"Torchlike.*no memory of its own"):
        nbopt.RMSProp().optimize([nbopt.Parameters((cuda.ones(3), tensor))], 0)


def test_gradients_are_followed_by_their_addresses_alone(cuda):
    """As nbopt.torch does, the addresses are shown at every step.

    The tensors are shown only when something else has changed.
    """
    (param, _), (_, first), (_, second) = (
        pairs_of(cuda, seed, ("float32",), [(20,)])[0] for seed in (1, 2, 3)
    )
    optimizer, shown = nbopt.GradientDescentMomentum(1.0, 0.0), []
    before = param.get()

    def columns(update):
        shown.append(1)
        return [[param], [first]]

    for grad in (first, second, second):
        update = optimizer.update_of(None, columns, lambda: None, 0, 8)
        update.key, update.addresses = [1], np.array([grad.storage.address], np.int64)
        cuda.update(update)
    assert np.allclose(param.get(), before - (first.get() + 2 * second.get()) / 8)
    assert len(shown) == 1
    update.addresses = np.array([param.storage.address], np.int64)  # is looked at afresh
    cuda.update(update)
    assert len(shown) == 2


def test_old_gradients_are_not_kept_alive(cuda):
    layer = nbopt.Parameters(*pairs_of(cuda, 1, ("float32",)))
    optimizer = nbopt.RMSProp()
    optimizer.optimize([layer], 0)
    old = weakref.ref(layer.grads[0].storage)
    layer.grads = [grad for _, grad in pairs_of(cuda, 2, ("float32",))]
    optimizer.optimize([layer], 1)
    gc.collect()
    assert old() is None


@pytest.mark.parametrize(
    "array", [np.ones(3), np.float32(1), np.ones((2, 2), np.int32)], ids=["array", "scalar", "int"]
)
def test_host_arrays_are_refused(cuda, array):
    with pytest.raises(errors.LayoutError, match=r"host.*\.array"):
        cuda.wrap(array)


def test_tensors_of_another_backend_are_refused(cuda):
    t = cuda.ones(3)
    with pytest.raises(errors.NboptError, match="host"):
        t[:] = reference().ones(3) + 1
    with pytest.raises(errors.LayoutError, match="device"):
        reference().ones(3)[:] = t + 1


def test_arrays_of_another_gpu_are_refused(cuda, monkeypatch):
    monkeypatch.setattr(cuda.device, "device_of", lambda address: 3)
    with pytest.raises(errors.LayoutError, match=r"GPU 3.*GPU 0.*device_id=3"):
        cuda.wrap(foreign(cuda.ones(3)))


@pytest.mark.parametrize(
    "changes", [{"typestr": "<i4"}, {"typestr": "<c8"}, {"typestr": ">f4"}, {"mask": "yes"}], ids=str
)
def test_arrays_that_can_not_be_trained_are_refused(cuda, changes):
    with pytest.raises(errors.LayoutError):
        cuda.wrap(foreign(cuda.ones(3), **changes))


def test_unaligned_arrays_are_refused(cuda):
    t = cuda.ones(4)
    with pytest.raises(errors.LayoutError, match="aligned"):
        cuda.wrap(foreign(t, data=(t.storage.address + 2, False), shape=(3,)))


def test_read_only_arrays_can_be_gradients_and_not_parameters(cuda):
    t = cuda.ones(4)
    readonly = cuda.wrap(foreign(t, data=(t.storage.address, True)))
    nbopt.RMSProp().optimize([nbopt.Parameters((cuda.ones(4), readonly))], 0)
    with pytest.raises(errors.LayoutError, match="read-only"):
        nbopt.RMSProp().optimize([nbopt.Parameters((readonly, cuda.ones(4)))], 0)


def test_memory_that_a_step_writes_twice_is_refused(cuda):
    t = cuda.ones(8)
    with pytest.raises(errors.LayoutError, match="share memory"):
        nbopt.RMSProp().optimize([nbopt.Parameters((t[:5], cuda.ones(5)), (t[3:], cuda.ones(5)))], 0)


def test_without_memory_for_the_states_nothing_has_changed(cuda, monkeypatch):
    layer = nbopt.Parameters(*pairs_of(cuda, 1, ("float32",)))
    optimizer = nbopt.Adam()
    before = [p.get() for p in layer.params]
    allocate, calls = cuda.device.allocate, []

    def full(size):
        calls.append(size)
        if len(calls) > 3:
            raise errors.DeviceMemoryError("the GPU is out of memory")
        return allocate(size)

    with monkeypatch.context() as patch:
        patch.setattr(cuda.device, "allocate", full)
        with pytest.raises(MemoryError):
            optimizer.optimize([layer], 0)
    assert optimizer.t == 0 and not any(layer.states)
    assert_same([p.get() for p in layer.params], before)
    optimizer.optimize([layer], 0)
    assert optimizer.t == 1


# --- 16 bits, and stochastic rounding ---

MIXES = [
    ("bfloat16",),
    ("float16",),
    ("bfloat16", "float32"),
    ("float64", "bfloat16", "float16"),
    ("float32",),
]
BLOCKS = [(37,), (3, 5), (), (0, 4), (4096,), (2 * 4096 + 259,)]  # of the stream of random bits


@each_16
@pytest.mark.parametrize("name", thorough_but(OPTIMIZERS, "momentum", "shift_adamax", where=["gpu"]))
@pytest.mark.covering
def test_every_optimizer_replays_the_references_16_bits(cuda, name, dtype):
    def run(be):
        return trained(be, OPTIMIZERS[name](stochastic_round=True, state_dtype=dtype), (dtype,), 2)

    assert_same(run(cuda), run(reference()))


@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("rounding", [False, True, 3])
@pytest.mark.parametrize("mix", thorough_but(MIXES, *MIXES[:3], where=["gpu"]), ids="-".join)
@pytest.mark.covering
@pytest.mark.rest(where=["simulated"])
@pytest.mark.rest("float32-*", "*-None", where=["gpu"])
def test_every_mix_and_rounding_has_the_references_bits(cuda, mix, rounding, state_dtype):
    def run(be):
        return trained(
            be,
            nbopt.RMSProp(stochastic_round=rounding, learning_rate=0.1, state_dtype=state_dtype),
            mix,
            2,
            [*SHAPES, (259,)],
        )

    assert_same(run(cuda), run(reference()))


@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.rest("True", where=["gpu"])
def test_mirrors(cuda, rounding):
    """Mirrors of 16 bits beside float32 parameters with gradients of 16 bits have the reference's bits."""

    def pairs(be, seed, dtypes, shapes):
        found = pairs_of(be, seed, ("float32",), shapes)
        return [(param, be.array(grad, "bfloat16")) for param, grad in found]

    found = [
        trained(be, nbopt.AdamW(stochastic_round=rounding, mirror_dtype="bfloat16"), pairs=pairs)
        for be in (cuda, reference())
    ]
    assert_same(*found)
    assert [values.dtype.name for values in found[0]].count("bfloat16") == len(SHAPES)


@pytest.mark.rest(where=["simulated"])
def test_blocks_of_random_bits_are_numbered_over_the_list_of_parameters(cuda):
    def run(be):
        return trained(
            be,
            nbopt.RMSProp(stochastic_round=True, state_dtype="bfloat16"),
            ("bfloat16", "float32"),
            2,
            BLOCKS,
        )

    assert_same(run(cuda), run(reference()))


@pytest.mark.rest(where=["gpu"])
def test_a_run_goes_on_from_a_stored_state_of_the_generator(cuda):
    def steps(layer, optimizer, epochs):
        for epoch in epochs:
            layer.grads = [grad for _, grad in pairs_of(cuda, epoch, ("bfloat16",))]
            optimizer.optimize([layer], epoch)
        return [p.get() for p in layer.params]

    made = [
        (
            nbopt.Parameters(*pairs_of(cuda, 1, ("bfloat16",))),
            nbopt.GradientDescentMomentum(0.3, 0.0, stochastic_round=True),
        )
        for _ in range(2)
    ]
    steps(*made[0], range(2))
    state = cuda.rng_get_state()
    expected = steps(*made[0], range(2, 4))
    cuda.rng_reset()
    steps(*made[1], range(2))
    cuda.array(1.0)[()] = cuda.array(2.0) + 1  # another update in between, which moves the count on
    cuda.rng_set_state(state)
    assert_same(steps(*made[1], range(2, 4)), expected)


@pytest.mark.parametrize("rounding", thorough_but([True, 4], True, where=["gpu"]))
@pytest.mark.rest(where=["simulated"])
def test_strided_and_unaligned_tensors_get_the_bits_of_their_positions(cuda, rounding):
    def pairs(be, seed, dtypes, shapes):
        rng = np.random.default_rng(seed)
        a, b, c, d = (be.array(rng.standard_normal((40, 130)), "bfloat16") for _ in range(4))
        e, f = (be.array(rng.standard_normal(301), "bfloat16") for _ in range(2))
        return [(a[::2, 128:0:-1], b[:20, 1:129]), (c[1:, :], d[:-1, :]), (e[1:], f[:-1])]

    def run(be):
        return trained(be, nbopt.RMSProp(stochastic_round=rounding), pairs=pairs, steps=2)

    assert_same(run(cuda), run(reference()))


@pytest.mark.parametrize(
    "value",
    [1.1, lambda be: be.array(np.full(5000, 0.5)) + be.array(np.full(5000, 0.6))],
    ids=["number", "sum"],
)
@pytest.mark.parametrize(
    "dtype", thorough_but(["float16", "bfloat16", "float32", "float64"], "bfloat16", "float64", where=["gpu"])
)
@pytest.mark.covering
def test_assignments_round_as_their_target_says(cuda, dtype, value):
    results = []
    for be in (cuda, reference()):
        out = be.empty(5000, dtype)
        out.rounding = 1
        out[:] = value(be) if callable(value) else value
        results.append(out.get())
    assert same_bits(*results)
    assert set(results[0].astype(float).tolist()) == {1.0, 1.5} and 0.12 < (results[0] == 1.5).mean() < 0.28


@each_16
@pytest.mark.parametrize("to", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.covering
@pytest.mark.rest(where=["simulated"])
@pytest.mark.rest("float16-*", "*-bfloat16", where=["gpu"])
def test_every_pattern_of_16_bits_widens_and_narrows_as_in_the_reference(cuda, dtype, to):
    patterns = np.arange(0, 65536, 5 if cuda.device.name == "simulator" else 1, dtype=np.uint16).view(
        cuda.storage_dtype(dtype)
    )
    results = []
    for be in (cuda, reference()):
        out = be.empty(patterns.shape, to)
        out[:] = be.array(patterns, dtype)
        results.append(out.get())
    assert same_bits(*results)
    if out.dtype.itemsize == 2:
        assert len(set(results[0][np.isnan(results[0])].view(np.uint16).tolist())) == 1


@each_16
@pytest.mark.parametrize("wide", ["float32", "float64"])
@np.errstate(all="ignore")
@pytest.mark.covering
@pytest.mark.rest(where=["simulated"])
def test_boundaries_round_to_nearest_as_in_the_reference(cuda, dtype, wide):
    middle = np.arange(0, 65536, 7, dtype=np.uint16).view(cuda.storage_dtype(dtype)).astype(wide)
    middle = middle[np.isfinite(middle)]
    ties = (middle + np.nextafter(middle, np.asarray(np.inf, dtype=wide))) / 2
    halves = middle * np.asarray(1 + 2.0 ** -(11 if dtype == "float16" else 8), wide)
    below = np.nextafter(halves, np.asarray(0, wide))
    values = np.concatenate(
        [middle, ties, halves, below, [65504, 65519.99, 65520, 3.39e38, 1e-8, np.inf, np.nan]]
    )
    results = []
    for be in (cuda, reference()):
        out = be.empty(len(values), dtype)
        out[:] = be.array(values, wide)
        results.append(out.get())
    assert same_bits(*results)


@each_16
@pytest.mark.parametrize("op", ["sum", "max", "argmin"])
@pytest.mark.covering
def test_reductions_of_16_bits_are_those_of_the_reference(cuda, op, dtype):
    values = np.random.default_rng(3).standard_normal((5, 300))
    results = []
    for be in (cuda, reference()):
        out = be.empty((5, 1))
        out[:] = getattr(be, op)(be.array(values, dtype), axis=1)
        results.append(out.get())
    assert same_bits(*results)


@each_16
def test_16_bits_come_and_go_unchanged_and_take_half(cuda, dtype):
    values = np.random.default_rng(1).standard_normal((4, 6)).astype(cuda.storage_dtype(dtype))
    values[1, 2] = np.nan
    t = cuda.array(values, dtype)
    assert t.dtype == values.dtype and t.storage.nbytes == 48 and same_bits(t.get(), values)
    again = cuda.wrap(foreign(t, "dlpack"))
    assert again.dtype == values.dtype and again.storage.address == t.storage.address
    t[2:] = 1.00390625  # is halfway between two numbers of bfloat16, so it goes to the even one
    assert (again.get()[2:] == (1.0 if dtype == "bfloat16" else 1.00390625)).all()


def test_a_tensor_is_pickled_by_its_values(cuda):
    again = pickle.loads(pickle.dumps(cuda.array(np.arange(6.0).reshape(2, 3))[:, 1:]))
    assert again.be is cuda and again.get().tolist() == [[1, 2], [4, 5]]


def test_explain_shows_the_text_that_is_compiled(cuda):
    text = nbopt.explain(nbopt.RMSProp(), [nbopt.Parameters((cuda.ones(4), cuda.ones(4)))])
    assert "# mean_square = " in text and "def update(table, chunks, n_chunks, numbers, " in text
    assert "GPU" in cuda.report()


@pytest.mark.rest(where=["gpu"])
def test_explain_shows_what_is_launched(cuda):
    """The small stages of a step are shown inside of the passes that they are parts of, or by themselves."""
    optimizer = nbopt.Adam(gradient_clip_norm=1.0)
    optimizer.capturable = True
    layer = nbopt.Parameters((cuda.ones(4), cuda.ones(4)))
    text = nbopt.explain(optimizer, [layer])
    norm, pass_ = text.split("def update(")[1:]
    norm, pass_ = (re.findall(r"^ +(\w+)_\d\(load_int64\(after", part, re.M) for part in (norm, pass_))
    assert norm == ["run", "fold_rows", "run", "run"] and pass_ == ["advance"]
    optimizer.optimize([layer], 0)
    before = cuda.compilations
    optimizer.optimize([layer], 0)
    assert cuda.compilations == before and optimizer.t == 2


@pytest.mark.parametrize("resident", [2**20, 0])
@pytest.mark.rest("0", where=["gpu"])
def test_first_numbers_in_each_block_or_by_themselves(cuda, monkeypatch, resident):
    """Where a GPU can't run all blocks at once, the first numbers are a launch of their own."""
    monkeypatch.setattr(cuda.device, "resident_blocks", resident)
    found = []
    for be, capturable in ((cuda, True), (reference(), False)):
        optimizer = nbopt.Adam()
        optimizer.capturable = capturable
        found.append(trained(be, optimizer, ("float32", "float64"), 3))
    assert_same(*found)


# --- steps that are skipped, and loss scales ---


@pytest.mark.parametrize("options", [{}, {"gradient_clip_norm": 0.1}], ids=["no clip", "norm clip"])
@pytest.mark.parametrize(
    "dtypes", thorough_but([("float32",), ("bfloat16", "float64")], ("float32",), where=["gpu"]), ids="-".join
)
@pytest.mark.rest(where=["simulated"])
@pytest.mark.rest("*-norm clip", where=["gpu"])
def test_a_gradient_that_is_not_finite_skips_the_step_without_the_host_reading_anything(
    cuda, monkeypatch, dtypes, options
):
    shapes = [(40,), (TILE + 3,), (2, 3)]

    def run(be):
        with nbopt.use_backend(be):
            layer = nbopt.Parameters(*pairs_of(be, 1, dtypes, shapes))
            optimizer = nbopt.RMSProp(stochastic_round=True, **options)
            optimizer.skip_nonfinite = True
            optimizer.loss_scale = be.array([3.0])
            for epoch, bad in enumerate([None, np.nan, None, -np.inf]):
                grads = [grad for _, grad in pairs_of(be, epoch + 2, dtypes, shapes)]
                if bad is not None:
                    grads[1][TILE + 1 :] = bad
                optimizer.loss_scale[:] = 3.0 + epoch
                layer.grads = grads
                with monkeypatch.context() as patch:
                    if be is cuda and epoch:
                        patch.setattr(cuda.device, "copy_out", None)
                        patch.setattr(cuda.device, "synchronize", None)
                    optimizer.optimize([layer], epoch)
            assert optimizer.skipped == 2 and optimizer.t == 4
            return [p.get() for p in layer.params] + [
                state.get() for states in layer.states for state in states
            ]

    found = run(cuda)
    assert_same(found, run(reference()))
    assert np.isfinite(np.concatenate([value.astype(float).ravel() for value in found])).all()


@pytest.mark.parametrize("bad", [0, 1])
def test_optimizers_are_skipped_together_without_the_host_reading_anything(cuda, monkeypatch, bad):
    def run(be):
        with nbopt.use_backend(be):
            layers = [
                nbopt.Parameters(*pairs_of(be, number, ("float32",), [(40,), (2, 3)]), name=str(number))
                for number in range(3)
            ]
            optimizers = [
                nbopt.RMSProp(gradient_clip_norm=0.1),
                nbopt.Adam(),
                nbopt.GradientDescentMomentum(0.1, 0.9),
            ]
            multi = nbopt.MultiOptimizer({"default": optimizers[0], "1": optimizers[1], "2": optimizers[2]})
            for optimizer in optimizers[:2]:
                optimizer.skip_nonfinite = True
            for epoch in range(3):
                for number, layer in enumerate(layers):
                    layer.grads = [
                        grad for _, grad in pairs_of(be, 10 * epoch + number, ("float32",), [(40,), (2, 3)])
                    ]
                if epoch == 1:
                    layers[bad].grads[0][7:8] = np.inf
                with monkeypatch.context() as patch:
                    if be is cuda and epoch:
                        patch.setattr(cuda.device, "copy_out", None)
                        patch.setattr(cuda.device, "synchronize", None)
                    multi.optimize(layers, epoch)
            assert [optimizer.skipped for optimizer in optimizers] == [1, 1, 0]
            return [p.get() for layer in layers for p in layer.params] + [
                s.get() for layer in layers for own in layer.states for s in own
            ]

    assert_same(run(cuda), run(reference()))


@pytest.mark.thorough("gpu")
def test_strided_tensors_are_skipped_too(cuda):
    param, grad = cuda.array(np.ones((4, 6))), cuda.array(np.full((4, 6), np.nan))
    optimizer = nbopt.GradientDescentMomentum(0.1, 0.9)
    optimizer.skip_nonfinite = True
    optimizer.optimize([nbopt.Parameters((param[:, ::2], grad[:, 1::2]))], 0)
    assert (param.get() == 1).all() and optimizer.skipped == 1


def test_a_loss_scale_that_gets_other_memory_is_read_there(cuda):
    scale = Torchlike(cuda.array([1.0]))
    layer = nbopt.Parameters((cuda.ones(5), cuda.ones(5)))
    optimizer = nbopt.GradientDescentMomentum(8.0, 0.0)  # by the batch size, a step is 1
    optimizer.loss_scale = scale
    optimizer.optimize([layer], 0)
    scale.data = cuda.array([4.0])
    optimizer.optimize([layer], 0)
    assert (layer.params[0].get() == 1 - 1 - 0.25).all()


@pytest.mark.rest(where=["gpu"])
def test_another_counter_or_scale_is_looked_at_anew(cuda):
    layer = nbopt.Parameters((cuda.ones(5), cuda.ones(5)))
    optimizer = nbopt.GradientDescentMomentum(8.0, 0.0)  # by the batch size, a step is 1
    optimizer.skip_nonfinite = True
    for scale in (1.0, 2.0, 4.0):
        optimizer.loss_scale = cuda.array([scale])
        optimizer.skipped = 0
        optimizer.optimize([layer], 0)
    assert (layer.params[0].get() == 1 - 1 - 0.5 - 0.25).all()


# --- checkpoints ---


@pytest.mark.parametrize("dtype", thorough_but(["float32", "bfloat16"], "bfloat16", where=DEVICES))
@pytest.mark.parametrize("name", thorough_but(OPTIMIZERS, "plain", where=DEVICES))
@pytest.mark.rest(where=["gpu"])
def test_a_run_that_is_saved_goes_on_with_the_same_bits_here_and_in_the_reference(
    cuda, tmp_path, name, dtype
):
    def strided(be, seed):
        return [(be.array(np.ones((4, 6)), dtype)[:, ::2], be.array(np.full((4, 3), seed), dtype))]

    def go(optimizer, layer, be, begin, steps):
        for step in range(begin, begin + steps):
            layer.grads = [grad for _, grad in pairs_of(be, 2 + step, (dtype,)) + strided(be, step)]
            optimizer.optimize([layer], step)
        return [p.get() for p in layer.params] + [state.get() for states in layer.states for state in states]

    def start(be):
        return OPTIMIZERS[name](stochastic_round=dtype == "bfloat16"), nbopt.Parameters(
            *pairs_of(be, 1, (dtype,)), *strided(be, 0)
        )

    optimizer, layer = start(cuda)
    go(optimizer, layer, cuda, 0, 2)
    nbopt.save(tmp_path / "run", optimizer, [layer])
    expected = go(optimizer, layer, cuda, 2, 2)
    for be in (cuda, reference()):
        with nbopt.use_backend(be):
            optimizer, layer = start(be)
            nbopt.load(tmp_path / "run", optimizer, [layer])
            assert_same(go(optimizer, layer, be, 2, 2), expected)


def test_a_state_is_loaded_into_the_same_device_memory_or_none_at_all(cuda):
    layer = nbopt.Parameters((cuda.ones(5), cuda.ones(5)), (cuda.ones((2, 3)), cuda.ones((2, 3))))
    optimizer = nbopt.Adam()
    optimizer.optimize([layer], 0)
    state, expected = optimizer.state_dict([layer]), [param.get() for param in layer.params]
    optimizer.optimize([layer], 1)
    addresses = [param.storage.address for param in layer.params]
    optimizer.load_state_dict(state, [layer])
    assert [param.storage.address for param in layer.params] == addresses
    assert_same([param.get() for param in layer.params], expected)
    optimizer.optimize([layer], 1)
    before = layer.params[0].get()
    readonly = foreign(layer.params[1], data=(addresses[1], True))
    other = nbopt.Parameters((layer.params[0], cuda.ones(5)), (readonly, cuda.ones((2, 3))))
    with pytest.raises(errors.LayoutError, match="read-only"):
        optimizer.load_state_dict(state, [other])
    assert same_bits(layer.params[0].get(), before) and optimizer.t == 2


@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_values_that_do_not_fit_are_refused_wherever_they_are(cuda, shape):
    tensor = cuda.zeros((3,))
    for values in (cuda.ones(shape), np.ones(shape, np.float32)):
        with pytest.raises(errors.ShapeError, match="don't fit"):
            tensor.set(values)


@pytest.mark.rest(where=["gpu"])
def test_counters_on_the_device_give_the_bits_of_the_hosts(cuda):
    """Adam's corrections and random bits follow from numbers in memory, which may be read and set."""
    found, dtypes = [], ("bfloat16", "float32")
    for be, capturable in ((cuda, True), (reference(), False)):
        optimizer = nbopt.Adam(stochastic_round=True, gradient_clip_norm=0.5)
        optimizer.capturable = capturable
        found.append(trained(be, optimizer, dtypes, 3))
        assert optimizer.t == 3 and be.rng_get_state() == {"seed": 0, "updates": 3}
        # Loaded numbers, and the way back to the host.
        optimizer.t = 7
        be.rng_set_state({"seed": 5, "updates": 11})
        found.append(trained(be, optimizer, dtypes, 1))
        optimizer.capturable = False
        found.append(trained(be, optimizer, dtypes, 1))
        assert optimizer.t == 9 and be.rng_get_state() == {"seed": 5, "updates": 13}
        be.rng_reset()
        assert be.rng_get_state() == {"seed": 0, "updates": 0}
    for own, expected in zip(found[:3], found[3:]):
        assert_same(own, expected)


def test_a_learning_rate_in_memory_is_read_at_each_step(cuda):
    found = []
    for be, capturable in ((cuda, True), (reference(), False)):
        with nbopt.use_backend(be):
            layer = nbopt.Parameters(*pairs_of(be, 1, ("float32",)))
            optimizer, rate = nbopt.Adam(), be.array([0.0], "float64")
            optimizer.capturable = capturable
            if capturable:
                optimizer.learning_rate = rate
            for now in (0.25, 0.125):
                rate.fill(now)
                if not capturable:
                    optimizer.learning_rate = now
                optimizer.optimize([layer], 0)
            found.append([param.get() for param in layer.params])
    assert_same(*found)


@pytest.mark.parametrize(
    "optimizer, words",
    [
        (lambda: nbopt.Adam(schedule=nbopt.Schedule(10, 0.5)), r"the schedule .*optimizer\.schedule = None"),
        (nbopt.ShiftAdaMax, r"reads step\.epoch.*capturable = False"),
    ],
    ids=["schedule", "epoch"],
)
def test_what_a_graph_would_freeze_is_refused(cuda, optimizer, words):
    made, layer = optimizer(), nbopt.Parameters(*pairs_of(cuda, 1, ("float32",)))
    made.capturable = True
    with pytest.raises(errors.StateError, match=words):
        made.optimize([layer], 0)
    assert made.t == 0 and layer.states == [[] for _ in layer.states]
