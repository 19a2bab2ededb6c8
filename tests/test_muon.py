"""Muon and its kin: against PyTorch's and pytorch_optimizer's, without their one cast to bfloat16."""

import numpy as np
import pytest
from helpers import same_bits

import nbopt

SHAPES = [(64, 64), (96, 32), (32, 96)]
STEPS = 10


def drawn(shapes=SHAPES, steps=STEPS):
    """Return parameters, and gradients for some steps."""
    rng = np.random.default_rng(7)
    params = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return params, [[rng.standard_normal(shape).astype(np.float32) for shape in shapes] for _ in range(steps)]


def ours(optimizer, params, grads, layer=None):
    """Return a layer after some steps."""
    layer = layer or nbopt.Parameters(*((param.copy(), np.zeros_like(param)) for param in params))
    for row in grads:
        layer.grads = [grad.copy() for grad in row]
        optimizer.optimize([layer], 0)
    return layer


class InFloat32:
    """PyTorch's tensors without their cast to bfloat16."""

    def __enter__(self):
        import torch

        self.given, self.to = torch.Tensor.bfloat16, torch.Tensor.to

        def to(x, *args, **options):
            rough = torch.bfloat16 in (*args, *options.values())
            return x.clone(memory_format=torch.contiguous_format) if rough else self.to(x, *args, **options)

        torch.Tensor.bfloat16, torch.Tensor.to = torch.Tensor.clone, to

    def __exit__(self, *error):
        import torch

        torch.Tensor.bfloat16, torch.Tensor.to = self.given, self.to


def theirs(make, params, grads, exact=True):
    """Return what an optimizer for PyTorch makes of the parameters."""
    torch = pytest.importorskip("torch", reason="the other side is in PyTorch: pip install torch")
    found = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in params]
    optimizer = make(found)
    for row in grads:
        for param, grad in zip(found, row):
            param.grad = torch.from_numpy(grad.copy())
        if exact:
            with InFloat32():
                optimizer.step()
        else:
            optimizer.step()
    return [param.detach().numpy() for param in found]


def assert_ends_alike(found, wanted, params, tolerance):
    """Over the way that each parameter has gone."""
    for own, other, start in zip(found, wanted, params, strict=True):
        way = np.linalg.norm(other.astype(np.float64) - start)
        assert np.linalg.norm(own.astype(np.float64) - other) <= tolerance * way


OPTIONS = [
    {},
    {"adjust_lr_fn": "original", "nesterov": False, "weight_decay": 0.0, "lr": 0.02},
    {
        "adjust_lr_fn": "match_rms_adamw",
        "momentum": 0.8,
        "ns_steps": 3,
        "ns_coefficients": (2.0, -1.5, 0.5),
        "eps": 1e-3,
    },
]
WORDS = {"lr": "learning_rate", "weight_decay": "wdecay", "momentum": "momentum_coef", "eps": "epsilon"}


@pytest.mark.parametrize("given", OPTIONS)
@pytest.mark.rest("given0")
def test_torch(given):
    """Ten steps end where PyTorch's do: natively and in the PyTorch door, which gives the same bits."""
    torch = pytest.importorskip("torch", reason="the other side is in PyTorch: pip install torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with PyTorch 2.9")
    import nbopt.torch

    params, grads = drawn()
    params = [
        0.01 * param for param in params
    ]  # else float32's spacing around them would be all that is seen
    wanted = theirs(lambda found: torch.optim.Muon(found, **given), params, grads)
    with nbopt.use_backend("reference"):
        own = {WORDS.get(name, name): value for name, value in given.items()}
        found = ours(nbopt.Muon(**own), params, grads).params
    assert_ends_alike(found, wanted, params, 1e-5)
    door = theirs(
        lambda found: nbopt.torch.Muon(found, backend="reference", **given), params, grads, exact=False
    )
    assert all(map(same_bits, door, found))
    if given:
        return
    rough = theirs(lambda found: torch.optim.Muon(found, **given), params, grads, exact=False)
    assert_ends_alike(found, rough, params, 0.05)


KIN = {
    "NorMuon": ("NorMuon", {}, {}),
    "NorMuon, other numbers": (
        "NorMuon",
        {
            "learning_rate": 0.1,
            "momentum_coef": 0.8,
            "beta_2": 0.7,
            "nesterov": False,
            "wdecay": 0.1,
            "adjust_lr_fn": "match_rms_adamw",
        },
        {
            "lr": 0.1,
            "momentum": 0.8,
            "beta2": 0.7,
            "nesterov": False,
            "weight_decay": 0.1,
            "update_scale": "match_rms",
        },
    ),
    "AdaMuon": ("AdaMuon", {}, {}),
    "AdaMuon, other numbers": (
        "AdaMuon",
        {"learning_rate": 0.1, "momentum_coef": 0.8, "beta_2": 0.7, "wdecay": 0.1, "ns_steps": 4},
        {"lr": 0.1, "betas": (0.8, 0.7), "weight_decay": 0.1, "ns_steps": 4},
    ),
}


@pytest.mark.parametrize("label", KIN)
@pytest.mark.rest("NorMuon")
def test_kin(label):
    """NorMuon and AdaMuon end where pytorch_optimizer's do, kernels of convolutions among them."""
    peers = pytest.importorskip("pytorch_optimizer", reason="the other side: pip install pytorch_optimizer")
    name, options, given = KIN[label]
    params, grads = drawn([*SHAPES, (6, 2, 3, 3)])
    wanted = theirs(
        lambda found: getattr(peers, name)([{"params": found, "use_muon": True}], **given), params, grads
    )
    with nbopt.use_backend("reference"):
        found = ours(getattr(nbopt, name)(flatten=True, **options), params, grads).params
    assert_ends_alike(found, wanted, params, 1e-4)


ALL = [nbopt.Muon, nbopt.NorMuon, nbopt.AdaMuon]


@pytest.mark.parametrize("kind", ALL)
def test_batch(kind):
    """A batch of matrices moves as the same matrices one by one do."""
    params, grads = drawn([(3, 8, 5)], 3)
    with nbopt.use_backend("reference"):
        found = ours(kind(), params, grads).params[0]
        alone = ours(kind(), [*params[0]], [[*row[0]] for row in grads]).params
    np.testing.assert_allclose(found, np.stack(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.rest("Muon", "AdaMuon")
def test_backends(kind):
    """The CPU is within rounding of the reference; a saved run goes on with the same bits."""
    params, grads = drawn([(24, 8), (6, 40), (2, 8, 24)], 4)
    found = {}
    for backend in ("reference", "cpu"):
        with nbopt.use_backend(backend):
            optimizer = kind(learning_rate=0.1)
            layer = ours(optimizer, params, grads[:2])
            twin = nbopt.Parameters(*((param.copy(), np.zeros_like(param)) for param in params))
            other = kind.gen_class(optimizer.get_description())
            assert other == optimizer
            other.load_state_dict(optimizer.state_dict([layer]), [twin])
            found[backend] = ours(optimizer, None, grads[2:], layer).params
            assert all(map(same_bits, found[backend], ours(other, None, grads[2:], twin).params))
    for a, b in zip(found["reference"], found["cpu"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_zero():
    """Nothing is divided by zero."""
    params, grads = drawn(steps=2)
    with nbopt.use_backend("reference"):
        for kind in ALL:
            layer = ours(
                kind(learning_rate=1.0), params, [[0 * grad for grad in row] for row in grads] + grads
            )
            assert all(np.isfinite(param).all() for param in layer.params)


def test_refused():
    """Parameters that are no matrices, and arguments that make no sense, are refused in words."""
    with nbopt.use_backend("reference"):
        for shape, words in (((5,), "takes matrices"), ((2, 3, 4, 5), "flatten=True")):
            for kind in ALL:
                layer = nbopt.Parameters((np.ones(shape), np.ones(shape)))
                with pytest.raises(nbopt.errors.TraceError, match=words):
                    kind().optimize([layer], 0)
                assert (layer.params[0] == 1).all()
        for name, value in [
            ("adjust_lr_fn", "rms"),
            ("heads", 0),
            ("split", 5),
            ("split", (2, 0)),
            ("axis", 0),
            ("ns_steps", 0),
            ("ns_coefficients", (1.0, 2.0)),
            ("ns_coefficients", "abc"),
            ("method", "fast"),
            ("momentum_coef", 1.0),
            ("flatten", 3),
            ("workspace", 0),
            ("epsilon", -1.0),
        ]:
            with pytest.raises(nbopt.errors.ArgumentError, match=name):
                nbopt.Muon(**{name: value})
        layer = nbopt.Parameters((np.ones((6, 4)), np.ones((6, 4))), name="qkv")
        with pytest.raises(nbopt.errors.ShapeError, match=r"'qkv'.*heads=4 does not divide the 6 rows"):
            nbopt.Muon(heads=4).optimize([layer], 0)
        with pytest.raises(nbopt.errors.ShapeError, match=r"cuts 4 rows.* has 6"):
            nbopt.Muon(split=(2, 2)).optimize([layer], 0)
