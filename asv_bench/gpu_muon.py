"""Time Muon on a GPU over GPT-2 124M's hidden matrices, and see how exact it is there.

    python asv_bench/gpu_muon.py

Prints milliseconds of a step of nbopt's and of PyTorch's, and of the bare batched products in bfloat16; the
launches of a step that has AdamW groups, too; and how far a step in bfloat16 is from one in float64.
"""

import statistics
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1])]

import nbopt.torch  # noqa: E402

#: Of each of the twelve blocks: joint queries, keys and values; their projection; the two of the network.
BLOCK = [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
ROUNDS = 20


def milliseconds(step):
    """Return the median time of a step, between two events on the device."""
    for _ in range(3):
        step()
    times = []
    for _ in range(ROUNDS):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        step()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last))
    return statistics.median(times)


def parameters(shapes, dtype=torch.float32):
    """Return parameters with gradients, the same values at each call."""
    generator = torch.Generator("cuda").manual_seed(0)
    found = []
    for shape in shapes:
        found.append(torch.nn.Parameter(torch.randn(shape, device="cuda", generator=generator).to(dtype)))
        found[-1].grad = torch.randn(shape, device="cuda", generator=generator).to(dtype)
    return found


def products(shapes, steps=5):
    """Return a function that does the products of the plain iteration, batched by shape."""
    sides = [tuple(sorted(shape)) for shape in shapes]
    batches = [
        [torch.full((sides.count(side), *side), 0.01, device="cuda", dtype=torch.bfloat16)]
        for side in set(sides)
    ]

    def step():
        for (x,) in batches:
            for _ in range(steps):
                gram = torch.bmm(x, x.mT)
                torch.bmm(torch.bmm(gram, gram), x)

    return step


def main():
    """Measure and print."""
    shapes = BLOCK * 12
    ours = milliseconds(nbopt.torch.Muon(parameters(shapes)).step)
    theirs = milliseconds(torch.optim.Muon(parameters(shapes)).step)
    bare = milliseconds(products(shapes))
    print(f"{torch.cuda.get_device_name()}: nbopt {ours:.2f} ms, torch.optim.Muon {theirs:.2f} ms,", end=" ")
    print(f"bare products {bare:.2f} ms; ours over it {ours / bare:.2f}, torch over ours {theirs / ours:.2f}")

    params = parameters([*BLOCK, (768,), (50257, 768)])
    mixed = nbopt.torch.Muon([{"params": params[:4]}, {"params": params[4:], "use_muon": False}])
    mixed.step()
    before = mixed._backend.launches
    mixed.step()
    print(f"a step with an AdamW group: {mixed._backend.launches - before} passes launched")

    for shape in BLOCK:
        ends = []
        for dtype in (torch.float32, torch.float64):
            (param,) = parameters([shape], dtype)
            start = param.detach().clone()
            nbopt.torch.Muon([param], weight_decay=0.0).step()
            ends.append((param.detach() - start).double())
        print(f"{shape}: {float((ends[0] - ends[1]).norm() / ends[1].norm()):.4f} of a step from float64")


if __name__ == "__main__":
    main()
