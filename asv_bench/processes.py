"""Whether many processes on one machine, as with one for each GPU, step faster at once than in turn.

    python asv_bench/processes.py                    # eight processes, 10 million elements each
    python asv_bench/processes.py --threads all      # what it would be if each took all threads

Each process has an AdamW over float32 tensors of its own. At once, all make some steps together, each on its
share of the threads (``LOCAL_WORLD_SIZE``). In turn, one after the other makes as many, each on all threads.
Both take turns."""

import argparse
import os
import statistics
import time

import torch

import nbopt.torch


def work(rank, world, count, steps, rounds, threads, barrier):
    """Be one of the processes; the first one prints the times."""
    os.environ["LOCAL_WORLD_SIZE"] = "1" if threads == "all" else str(world)
    params = [torch.nn.Parameter(torch.randn(count // 10)) for _ in range(10)]
    for param in params:
        param.grad = torch.randn_like(param)
    together = nbopt.torch.AdamW(params, lr=1e-6)
    together.step()
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    alone = nbopt.torch.AdamW(params, lr=1e-6)
    alone.step()
    times = {"at once": [], "in turn": []}
    for _ in range(rounds):
        barrier.wait()
        start = time.perf_counter()
        for _ in range(steps):
            together.step()
        barrier.wait()
        times["at once"].append(time.perf_counter() - start)
        start = time.perf_counter()
        for turn in range(world):
            for _ in range(steps if turn == rank else 0):
                alone.step()
            barrier.wait()
        times["in turn"].append(time.perf_counter() - start)
    if rank == 0:
        be = together._backend.threads, alone._backend.threads
        print(f"{world} processes of {count} elements, {steps} steps, medians of {rounds} rounds")
        for (name, found), own in zip(times.items(), be):
            each = 1000 * statistics.median(found)
            print(f"  {name}: {each:7.1f} ms, {own.allowed()} threads in each process")
        ratio = statistics.median(a / b for a, b in zip(*times.values()))
        print(f"  at once takes {ratio:.2f} of the time in turn")


def main():
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", type=int, default=8, help="how many processes")
    parser.add_argument("--count", type=int, default=10_000_000, help="elements of each")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", choices=["shared", "all"], default="shared")
    args = parser.parse_args()
    barrier = torch.multiprocessing.get_context("spawn").Barrier(args.world)
    given = args.world, args.count, args.steps, args.rounds, args.threads, barrier
    torch.multiprocessing.spawn(work, given, nprocs=args.world)


if __name__ == "__main__":
    main()
