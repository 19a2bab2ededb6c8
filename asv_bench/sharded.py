"""What a step of AdamW over DTensors, as FSDP2 makes them, costs the host, beside one over plain tensors.

    python asv_bench/sharded.py                  # one process, which has all of each parameter
    python asv_bench/sharded.py --world 2        # two processes, each of which has half

Contenders take turns. The table has the shortest and the median time of a step, of the first process."""

import argparse
import os
import random
import statistics
import tempfile
import time

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import nbopt.torch


def optimizer_of(kind, count, mesh=None):
    """An optimizer over small matrices with gradients. On a mesh each process has as many elements."""
    params = []
    for _ in range(count):
        values, grad = torch.randn(16 * (1 if mesh is None else mesh.size()), 16), torch.randn(1, 16)
        grad = grad.expand_as(values).contiguous()
        if mesh is not None:
            values, grad = (distribute_tensor(x, mesh, [Shard(0)]) for x in (values, grad))
        params.append(torch.nn.Parameter(values))
        params[-1].grad = grad
    return kind(params, lr=1e-6)


def measure(rank, world, file, count, rounds):
    """Let the contenders take turns; the first process prints the table, and returns the ratio."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    steps = {
        "nbopt.torch.AdamW, plain tensors": optimizer_of(nbopt.torch.AdamW, count).step,
        "nbopt.torch.AdamW, DTensors": optimizer_of(nbopt.torch.AdamW, count, mesh).step,
        "torch.optim.AdamW, plain tensors": optimizer_of(torch.optim.AdamW, count).step,
        "torch.optim.AdamW, DTensors": optimizer_of(torch.optim.AdamW, count, mesh).step,
    }
    times = {name: [] for name in steps}
    for step in steps.values():
        step()
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(steps), len(steps)):
            for _ in range(1 if name.startswith("torch") else 20):
                start = time.perf_counter()
                steps[name]()
                times[name].append(time.perf_counter() - start)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if rank == 0:
        print(f"AdamW over {count} tensors of 16 x 16, {world} process{'es' * (world > 1)}, {rounds} rounds")
        for name, found in times.items():
            print(f"  {name:34} {1e6 * min(found):9.0f} us at best {1e6 * statistics.median(found):9.0f} us")
        for title, of in (("at best", min), ("median", statistics.median)):
            plain, sharded = (of(found) for found in list(times.values())[:2])
            print(f"  DTensors take {sharded / plain:.2f} times as long as plain tensors ({title})")


def main():
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", type=int, default=1, help="how many processes")
    parser.add_argument("--count", type=int, default=300, help="of the parameters")
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            measure, (args.world, f"{folder}/store", args.count, args.rounds), nprocs=args.world
        )


if __name__ == "__main__":
    main()
