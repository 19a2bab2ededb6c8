"""nbopt.torch.Muon: its groups, blocks of matrices, state dicts, and what it refuses."""

import copy

import pytest

import nbopt

torch = pytest.importorskip("torch", reason="these tests need PyTorch: pip install nbopt[torch]")

import nbopt.torch  # noqa: E402


def parameters(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def train(optimizer, params, steps=3, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def trained(shapes, backend="reference", **group):
    params = parameters(shapes)
    train(nbopt.torch.Muon([{"params": params, **group}], lr=0.1, backend=backend), params)
    return [p.detach() for p in params]


def test_groups():
    """Groups with use_muon=False are AdamW's, in the same call; the others are as if they were alone."""
    shapes = [(8, 6), (5, 9), (12,), (10, 4)]
    params, matrices, others = parameters(shapes), parameters(shapes), parameters(shapes)
    optimizer = nbopt.torch.Muon(
        [{"params": params[:2]}, {"params": params[2:], "use_muon": False, "lr": 0.01, "weight_decay": 0.2}],
        lr=0.1, adjust_lr_fn="match_rms_adamw", backend="reference",
    )  # fmt: skip
    be = optimizer._backend
    calls, given = [], be.update
    be.update = lambda *updates, **turns: (calls.append(len(updates)), given(*updates, **turns))[1]
    train(optimizer, params)
    assert len(calls) == 3
    muon = nbopt.torch.Muon(matrices[:2], lr=0.1, adjust_lr_fn="match_rms_adamw", backend="reference")
    adamw = nbopt.torch.AdamW(others[2:], lr=0.01, weight_decay=0.2, backend="reference")
    generators = [torch.Generator().manual_seed(100 + step) for step in range(3)]
    for generator in generators:
        for p, q in zip(matrices, others):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        muon.step()
        adamw.step()
    for p, q in zip(params, [*matrices[:2], *others[2:]], strict=True):
        assert torch.equal(p, q)
    assert [*optimizer.state[params[0]]] == ["momentum_buffer"]
    assert [*optimizer.state[params[3]]] == ["step", "exp_avg", "exp_avg_sq"]
    assert optimizer.param_groups[1]["betas"] == (0.9, 0.999)


def test_launches():
    """A step with groups of both kinds is two passes for each shape of matrices, and one for all else."""
    params = parameters([(8, 6), (5, 9), (8, 6), (12,), (10, 4), (3,)])
    groups = [{"params": params[:3]}, {"params": params[3:], "use_muon": False}]
    optimizer = nbopt.torch.Muon(groups, lr=0.1, backend="cpu")
    for _ in range(2):
        before = optimizer._backend.launches
        train(optimizer, params, 1)
        assert optimizer._backend.launches - before == 2 * 2 + 1


def test_blocks():
    """Batches, heads, parts and kernels equal the same matrices given one by one, to rounding."""
    whole = parameters([(12, 5)])[0].detach()

    def alone(cut, **group):
        params = [torch.nn.Parameter(part.clone()) for part in cut(whole)]
        optimizer = nbopt.torch.Muon([{"params": params, **group}], lr=0.1, backend="reference")
        for step in range(3):
            grad = torch.randn(whole.shape, generator=torch.Generator().manual_seed(100 + step))
            for p, part in zip(params, cut(grad)):
                p.grad = part.clone()
            optimizer.step()
        return [p.detach() for p in params]

    cases = [
        ({"heads": 3}, lambda x: [*x.chunk(3)]),
        ({"heads": 5, "axis": -1}, lambda x: [*x.chunk(5, 1)]),
        ({"split": (2, 6, 4)}, lambda x: [*x.split((2, 6, 4))]),
        ({"split": (4, 8), "heads": 2}, lambda x: [*x.split((2, 2, 4, 4))]),
        ({"split": (2, 3), "axis": -1}, lambda x: [*x.split((2, 3), 1)]),
    ]
    for group, cut in cases:
        (found,) = trained([(12, 5)], **group)
        for part, wanted in zip(cut(found), alone(cut), strict=True):
            torch.testing.assert_close(part, wanted, atol=1e-5, rtol=1e-5)
    (kernel,) = trained([(6, 2, 5, 1)], flatten=True)
    (flat,) = trained([(6, 10)])
    torch.testing.assert_close(kernel.reshape(6, 10), flat, atol=1e-5, rtol=1e-5)


def test_saved():
    """State dicts go to and from torch.optim.Muon, and a resumed run has the same bits."""
    params = parameters([(6, 4), (3, 2, 5)])
    optimizer = nbopt.torch.Muon(params, lr=0.1, backend="reference")
    train(optimizer, params)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = nbopt.torch.Muon(twins, backend="reference")
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied, own = copy.deepcopy((optimizer, params))
    for run, mine in ((optimizer, params), (other, twins), (copied, own)):
        train(run, mine, 2, 3)
    for found in (twins, own):
        assert all(map(torch.equal, params, found))
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with PyTorch 2.9")
    theirs = torch.optim.Muon(parameters([(6, 4)]), lr=0.3)
    train(theirs, theirs.param_groups[0]["params"], 1)
    mine = nbopt.torch.Muon(parameters([(6, 4)]), backend="reference")
    mine.load_state_dict(theirs.state_dict())
    (p,), (q,) = (run.param_groups[0]["params"] for run in (theirs, mine))
    assert torch.equal(theirs.state[p]["momentum_buffer"], mine.state[q]["momentum_buffer"])
    theirs.load_state_dict(mine.state_dict())
    assert isinstance(mine, torch.optim.Muon)
    assert mine.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.rest
def test_nonfinite(backend):
    """A step with NaN gradients changes nothing, in groups of both kinds."""
    params = parameters([(4, 6), (5,)])
    optimizer = nbopt.torch.Muon(
        [{"params": params[:1]}, {"params": params[1:], "use_muon": False}],
        skip_nonfinite=True,
        backend=backend,
    )
    train(optimizer, params, 1)
    before = [p.detach().clone() for p in params], optimizer.state[params[0]]["momentum_buffer"].clone()
    for p in params:
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    assert all(map(torch.equal, params, before[0]))
    assert torch.equal(optimizer.state[params[0]]["momentum_buffer"], before[1])
    assert optimizer.skipped == [1, 1]


def test_half():
    """Matrices in float16 whose norm is beyond float16 are orthogonalised all the same."""
    param = torch.nn.Parameter(torch.zeros(8, 8, dtype=torch.float16))
    optimizer = nbopt.torch.Muon([param], lr=1.0, weight_decay=0.0, backend="reference")
    param.grad = torch.full((8, 8), 6e4, dtype=torch.float16)
    optimizer.step()
    assert 0.6 < torch.linalg.svdvals(param.detach().float())[0] < 1.25


def test_refused():
    """What makes no sense is refused when the group is made."""
    for shapes, group, words in [
        ([(4, 4), (7,)], {}, r"parameter 1 of a Muon group.*\(7,\).*use_muon=False.*muon_groups"),
        ([(2, 3, 4, 5)], {}, "flatten=True"),
        ([(6, 4)], {"heads": 4}, "heads=4 does not divide the 6 rows"),
        ([(6, 4)], {"split": (2, 3)}, "cuts 5 rows"),
        ([(6, 4)], {"split": (2, 3), "axis": -1}, "cuts 5 columns"),
        ([(6, 4)], {"adjust_lr_fn": "rms"}, "adjust_lr_fn must be"),
        ([(6, 4)], {"ns_coefficients": (1.0,)}, "three finite numbers"),
        ([(6, 4)], {"lr": -1.0}, "lr must be|learning rate"),
    ]:
        with pytest.raises(ValueError, match=words):
            nbopt.torch.Muon(parameters(shapes), backend="reference", **group)
    with pytest.raises(ValueError, match="'use_muon' must be True or False, not 'no'"):
        nbopt.torch.Muon([{"params": parameters([(6, 4)]), "use_muon": "no"}], backend="reference")
    optimizer = nbopt.torch.Muon(parameters([(6, 4)]), backend="reference")
    optimizer.param_groups[0]["use_muon"] = False
    with pytest.raises(ValueError, match="can't change after"):
        train(optimizer, optimizer.param_groups[0]["params"], 1)


def test_shards():
    """A shard of a matrix is refused, and has not changed: its own singular values are others."""
    pytest.importorskip(
        "torch.testing._internal.distributed.fake_pg", reason="this PyTorch has no processes that are made up"
    )
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.distributed.init_process_group("fake", rank=0, world_size=2)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        for place, is_split in ((Shard(0), True), (Replicate(), False)):
            param = torch.nn.Parameter(distribute_tensor(torch.ones(6, 4), mesh, [place]))
            param.grad = torch.ones_like(param)
            optimizer = nbopt.torch.Muon([param], lr=0.1, backend="reference")
            if is_split:
                with pytest.raises(ValueError, match=r"whole matrices.*Replicate the matrices"):
                    optimizer.step()
            else:
                optimizer.step()
            assert bool((param.to_local() == 1).all()) == is_split
    finally:
        torch.distributed.destroy_process_group()


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(10, 4)
        self.conv = torch.nn.Conv1d(4, 6, 3)
        self.blocks = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        self.lm_head = torch.nn.Linear(4, 10, bias=False)


def test_muon_groups(capsys):
    """Hidden matrices, kernels and all else are told apart and printed; the groups train."""
    model = Model()
    groups = nbopt.torch.muon_groups(model)
    names = [[name for name, _ in group["params"]] for group in groups]
    assert names == [
        ["blocks.0.weight"],
        ["conv.weight"],
        ["embed.weight", "conv.bias", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias", "lm_head.weight"],
    ]
    assert "convolutions: conv.weight (6, 4, 3)" in capsys.readouterr().out
    params = [p for group in groups for _, p in group["params"]]
    optimizer = nbopt.torch.Muon(groups, lr=0.1, backend="reference")
    train(optimizer, params, 1)
    assert optimizer.param_groups[1]["flatten"] is True
    nbopt.torch.muon_groups(model, heads=["blocks.0"], verbose=False)
    assert not capsys.readouterr().out
    with pytest.raises(ValueError, match="no layer 'top'"):
        nbopt.torch.muon_groups(model, heads=["top"])
    with pytest.raises(ValueError, match=r"torch\.nn\.Module"):
        nbopt.torch.muon_groups(params)
