"""One process of a training run with sharded parameters (FSDP2 over gloo).

`python tests/sharded.py RANK WORLD FILE STEPS` starts it, as tests/test_torch_shards.py does. It prints
"done" if all holds.
"""

import gc
import os
import sys
import warnings

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import nbopt.torch

INPUTS = torch.linspace(-1, 1, 12).view(3, 4)


def trained(module, name, mesh=None, steps=4, **options):
    """Train a small network; return its whole parameters and the optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    optimizer = getattr(module, name)(model.parameters(), lr=0.1, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(INPUTS).square().sum().backward()
        optimizer.step()
    return [
        p.full_tensor().detach() if mesh is not None else p.detach() for p in model.parameters()
    ], optimizer


def raises(function, *words):
    """Whether a ValueError says all the words."""
    try:
        function()
    except ValueError as error:
        return all(word in str(error) for word in words)
    return False


def saved_and_loaded(optimizer, params, mesh):
    """A state dict of sharded states goes on where it was saved."""
    other = nbopt.torch.AdamW(params, backend="reference")
    other.load_state_dict(optimizer.state_dict())
    for first, second in zip(optimizer.state.values(), other.state.values()):
        assert all(type(first[key]) is type(second[key]) for key in first)
        assert torch.equal(first["exp_avg"].full_tensor(), second["exp_avg"].full_tensor())
        assert first["exp_avg"] is not second["exp_avg"] and first["step"] == second["step"]


def check_masters(mesh):
    """Shards of 16 bits have shards of masters. They train as plain ones do, and take over writes."""
    found = []
    for sharded in (True, False):
        whole = torch.linspace(-1, 1, 24).view(6, 4).bfloat16()
        param = torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]) if sharded else whole.clone())
        optimizer = nbopt.torch.AdamW([param], lr=0.1, master_weights=True, backend="reference")
        for step in range(4):
            grad = torch.full((6, 4), 0.5 + step).bfloat16()
            param.grad = distribute_tensor(grad, mesh, [Shard(0)]) if sharded else grad
            if step == 2:
                with torch.no_grad():
                    param.fill_(3.0)
            if step == 3:
                with torch.no_grad():
                    (param._local_tensor if sharded else param).fill_(2.0)
            optimizer.step()
        states = optimizer.state[param]
        found.append([getattr(x, "full_tensor", lambda x=x: x)() for x in (param, states["master_param"])])
        assert states["master_param"].dtype == torch.float32
        assert (type(states["master_param"]) is DTensor) == sharded
    assert all(map(torch.equal, *found))


def check_versions(mesh):
    """A backward pass through values that a step has changed is PyTorch's error."""
    param = torch.nn.Parameter(distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)]))
    optimizer = nbopt.torch.SGD([param], lr=0.1)
    for steps in (0, 1, 1, 1, 1):  # the last ones are steady
        param.grad = distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)])
        loss = (param * param).sum()
        for _ in range(steps):
            optimizer.step()
        try:
            loss.backward()
        except RuntimeError as error:
            assert steps and "modified by an inplace operation" in str(error)
        else:
            assert not steps


def check_fsdp(mesh):
    """FSDP2 that offloads has parameters on the CPU, which train as plain ones do. Offload refuses them."""
    models = []
    for sharded in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        if sharded:
            for module in (model[0], model[2], model):
                fully_shard(module, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
        optimizer = nbopt.torch.AdamW(model.parameters(), lr=0.01, backend="reference")
        for step in range(4):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().sum().backward()
            optimizer.step()
        models.append(model)
    for param, other in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(other.full_tensor(), param, rtol=1e-6, atol=1e-7)
    assert raises(lambda: nbopt.torch.Offload(models[1], nbopt.torch.AdamW), "DTensor", "CPUOffloadPolicy")


def check_ddp(rank):
    """Offload takes the gradients that DDP has averaged."""
    found = []
    for offload in (False, True):
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(
            torch.nn.Linear(8, 2), gradient_as_bucket_view=offload
        )
        make = nbopt.torch.Offload if offload else lambda params, kind, **options: kind(params, **options)
        optimizer = make(model.parameters(), nbopt.torch.SGD, lr=0.1, momentum=0.9)
        for step in range(4):
            torch.manual_seed(10 * step + rank)
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            model(torch.randn(4, 8)).square().sum().backward()
            optimizer.step()
        found.append([param.detach() for param in model.parameters()])
    assert all(map(torch.equal, *found))


def memory():
    """Return the bytes of the process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check_growth(mesh, steps):
    """Steps with new gradients leave neither objects nor memory behind."""
    params = [torch.nn.Parameter(distribute_tensor(torch.ones(64, 8), mesh, [Shard(0)])) for _ in range(10)]
    optimizer = nbopt.torch.AdamW(params)

    def run(count):
        for _ in range(count):
            for p in params:
                local = torch.ones_like(p._local_tensor)
                p.grad = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
            optimizer.step()
        gc.collect()
        return len(gc.get_objects()), memory()

    objects, size = run(100)
    more_objects, more_size = run(steps)
    assert more_objects <= objects + 10, (objects, more_objects)
    assert more_size <= size + 4e6, (size, more_size)


def main(rank, world, file, steps):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    for name in ("AdamW", "SGD", "Adagrad", "NAdam", "ASGD", "Rprop"):
        expected, _ = trained(torch.optim, name)
        for options in ({"backend": "reference"}, {}) if name == "AdamW" else ({"backend": "reference"},):
            found, optimizer = trained(nbopt.torch, name, mesh, **options)
            for a, b in zip(found, expected):
                torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
        for states in optimizer.state.values():
            assert all(type(value) is DTensor for value in states.values() if value.ndim), states
    _, optimizer = trained(nbopt.torch, "AdamW", mesh, backend="reference")
    saved_and_loaded(optimizer, optimizer.param_groups[0]["params"], mesh)
    for extras in ({"gradient_clip_norm": 1.0}, {"skip_nonfinite": True}):
        refused = raises(
            lambda extras=extras: trained(nbopt.torch, "AdamW", mesh, **extras, backend="reference"),
            "AdamW reduces",
            "DTensor",
        )
        assert refused == (world > 1)
    for name in ("LAMB", "SM3"):  # whose rules reduce by themselves
        refused = raises(
            lambda name=name: trained(nbopt.torch, name, mesh, backend="reference"),
            f"{name} reduces",
            "DTensor",
        )
        assert refused == (world > 1)
    # A plain tensor beside a sharded one, a replicated one, and a gradient that is distributed in another
    # way.
    params = [
        torch.nn.Parameter(torch.ones(6)),
        *(torch.nn.Parameter(distribute_tensor(torch.ones(6), mesh, [p])) for p in (Shard(0), Replicate())),
    ]
    for param, place in zip(params[1:], (Shard(0), Replicate())):
        param.grad = distribute_tensor(torch.ones(6), mesh, [place])
    params[0].grad = torch.ones(6)
    optimizer = nbopt.torch.SGD(params, lr=0.5, backend="reference")
    optimizer.step()
    assert all(getattr(p, "full_tensor", lambda p=p: p)().tolist() == [0.5] * 6 for p in params)
    params[1].grad = distribute_tensor(torch.ones(6), mesh, [Replicate()])
    assert world == 1 or raises(optimizer.step, "parameter 1", "redistribute")
    check_masters(mesh)
    check_versions(mesh)
    check_fsdp(mesh)
    check_ddp(rank)
    check_growth(mesh, steps)
    torch.distributed.destroy_process_group()
    print("done")


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
