"""Tests of the CUDA backend that the simulator and a real GPU run alike: test_cuda_sim.py and test_gpu.py take them from here.

They take the fixture `cuda`, a NumbaCUDA with batch size 8. Arrays are small: a simulated operation takes microseconds.
"""

import gc
import pickle
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import OPTIMIZERS, same_bits, special_values, ulp_distance

import nbopt
from nbopt import errors
from nbopt.ops import PRIMITIVES
from nbopt_backends.reduction import TILE

SHAPES = [(37,), (3, 5), (), (0, 4), (64,), (2, 3, 7)]
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


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
    """What the backend asks a PyTorch tensor. Its memory can be exchanged under the same object, as ``p.data = ...`` does."""

    is_cuda = True
    dtype = "torch.float32"

    def __init__(self, tensor):
        self.data = tensor

    shape = property(lambda self: self.data.shape)

    def data_ptr(self):
        return self.data.storage.address

    def get_device(self):
        return 0

    def is_contiguous(self):
        return True

    def stride(self):
        return tuple(step // 4 for step in self.data.storage.strides)

    def element_size(self):
        return 4


def pairs_of(be, seed, dtypes, shapes=SHAPES):
    """(parameter, gradient) tensors with the same values on any backend."""
    rng = np.random.default_rng(seed)
    chosen = [dtypes[k % len(dtypes)] for k in range(len(shapes))]
    return [(be.array(rng.standard_normal(s), d), be.array(rng.standard_normal(s), d)) for s, d in zip(shapes, chosen)]


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


@pytest.mark.parametrize("dtypes", [("float32",), ("float64",), ("float32", "float64")], ids="-".join)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_the_references_bits(cuda, name, dtypes):
    assert_same(trained(cuda, OPTIMIZERS[name](), dtypes), trained(reference(), OPTIMIZERS[name](), dtypes))


def test_both_rules_of_radam_have_the_references_bits(cuda):
    assert_same(trained(cuda, nbopt.RAdam(), steps=8), trained(reference(), nbopt.RAdam(), steps=8))


@pytest.mark.parametrize("dtypes", [("float32",), ("float32", "float64")], ids="-".join)
def test_clips_have_the_references_bits(cuda, dtypes):
    def optimizer():
        return nbopt.RMSProp(gradient_clip_norm=0.3, gradient_clip_value=0.02, param_clip_value=1.5)

    shapes = [*SHAPES, (2 * TILE + 77,), (TILE,)]
    assert_same(trained(cuda, optimizer(), dtypes, 2, shapes), trained(reference(), optimizer(), dtypes, 2, shapes))


def test_the_norm_clip_goes_by_c_order_for_strided_gradients(cuda):
    def pairs(be, seed, dtypes, shapes):
        rng = np.random.default_rng(seed)
        param, grad = be.array(rng.standard_normal((30, 400))), be.array(rng.standard_normal((60, 401)))
        return [(param, grad[::2, 400:0:-1])]

    def optimizer():
        return nbopt.GradientDescentMomentum(0.1, 0.9, gradient_clip_norm=0.1)

    assert_same(trained(cuda, optimizer(), pairs=pairs, steps=2), trained(reference(), optimizer(), pairs=pairs, steps=2))


@each_dtype
def test_clip_gradient_norm_gives_the_references_factor(cuda, dtype):
    factors = []
    for be in (cuda, reference()):
        with nbopt.use_backend(be):
            layer = nbopt.Parameters(*pairs_of(be, 5, (dtype,), [(TILE + 5,), (3, 4)]))
            factors.append(nbopt.Adam().clip_gradient_norm(layer.get_params(), 2.0))
    assert factors[0] == factors[1] < 1


@each_dtype
@pytest.mark.parametrize("op", PRIMITIVES.values(), ids=PRIMITIVES)
def test_every_op(cuda, op, dtype):
    rng = np.random.default_rng(7)
    values = [special_values(dtype, rng, 600) for _ in range(op.arity)]
    if op.name == "ldexp":
        values[1] = np.round(rng.standard_normal(600) * 100).astype(dtype)
    results = []
    for be in (cuda, reference()):
        tensors = [be.array(value, dtype) for value in values]
        out = be.empty(600, dtype)
        apply = partial(be.shift, value=False) if op.name == "ldexp" else getattr(be, op.name)
        apply(*tensors, out=out)
        results.append(out.get())
    assert same_bits(*results) if op.exact else ulp_distance(*results).max() <= 4


@each_dtype
@pytest.mark.parametrize("op, axis", [(op, axis) for op in ("sum", "max", "min") for axis in (None, 0, 1)] + [("argmax", 1), ("argmin", 1)])
def test_reductions_have_the_references_bits(cuda, op, axis, dtype):
    rng = np.random.default_rng(3)
    n = 12 if axis == 0 else 700
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
    values = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    sums = []
    for be in (cuda, reference()):
        out = be.empty(1)
        be.sum(be.array(values), out=out)
        sums.append(out.get())
    assert same_bits(*sums)


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


def test_what_a_step_copies_to_the_device(cuda, monkeypatch):
    layer = nbopt.Parameters(*pairs_of(cuda, 1, ("float32",)))
    optimizer = nbopt.GradientDescentMomentum(0.1, 0.9, gradient_clip_norm=1.0)
    optimizer.optimize([layer], 0)
    optimizer.optimize([layer], 1)
    new = pairs_of(cuda, 2, ("float32",))[0][1]
    copies = []
    copy_in = cuda.device.copy_in
    monkeypatch.setattr(cuda.device, "copy_in", lambda address, values, stream: (copies.append(len(values)), copy_in(address, values, stream)))
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


def test_old_gradients_are_not_kept_alive(cuda):
    layer = nbopt.Parameters(*pairs_of(cuda, 1, ("float32",)))
    optimizer = nbopt.RMSProp()
    optimizer.optimize([layer], 0)
    old = weakref.ref(layer.grads[0].storage)
    layer.grads = [grad for _, grad in pairs_of(cuda, 2, ("float32",))]
    optimizer.optimize([layer], 1)
    gc.collect()
    assert old() is None


@pytest.mark.parametrize("array", [np.ones(3), np.float32(1), np.ones((2, 2), np.int32)], ids=["array", "scalar", "int"])
def test_host_arrays_are_refused(cuda, array):
    with pytest.raises(errors.LayoutError, match=r"host.*be\.array"):
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


@pytest.mark.parametrize("changes", [{"typestr": "<i4"}, {"typestr": "<f2"}, {"typestr": ">f4"}, {"mask": "yes"}], ids=str)
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


def test_stochastic_rounding_is_refused_not_ignored(cuda):
    layer = nbopt.Parameters((cuda.ones(4), cuda.ones(4)))
    with pytest.raises(errors.ArgumentError, match="stochastic"):
        nbopt.RMSProp(stochastic_round=8).optimize([layer], 0)
    assert (layer.params[0].get() == 1).all()


def test_a_tensor_is_pickled_by_its_values(cuda):
    again = pickle.loads(pickle.dumps(cuda.array(np.arange(6.0).reshape(2, 3))[:, 1:]))
    assert again.be is cuda and again.get().tolist() == [[1, 2], [4, 5]]


def test_explain_shows_the_text_that_is_compiled(cuda):
    text = nbopt.explain(nbopt.RMSProp(), [nbopt.Parameters((cuda.ones(4), cuda.ones(4)))])
    assert "# mean_square = " in text and "def update(table, chunks, n_chunks, scalars):" in text
    assert "GPU" in cuda.report()
