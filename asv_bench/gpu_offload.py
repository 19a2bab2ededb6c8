"""What offload costs on a GPU: device memory before and after, and how much of the copies is hidden.

    python asv_bench/gpu_offload.py                          # 500 million parameters, a minute
    python asv_bench/gpu_offload.py --layers 4 --width 1024 --device cpu   # does it run?

The model is a stack of linear layers in bfloat16. Times are medians, in milliseconds:

- *backward*: a forward and a backward pass, with nothing after them;
- *host*: the step on the host, with its copies left out;
- *copies*: all gradients to the host and all parameters back, alone;
- *offload*: passes and step, as a program has them.

Copies are hidden as far as *offload* takes less than the sum of the others: the share is
``(backward + host + copies - offload) / copies``. What of the step is hidden behind the backward pass of the
next one does not count."""

import argparse
import statistics
import time
from unittest import mock

import torch

import nbopt.torch
from nbopt.torch.offload.copies import Copies


def model_of(args):
    """A new model, the same each time."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(args.width, args.width, bias=False) for _ in range(args.layers)]
    return torch.nn.Sequential(*layers).to(args.device, torch.bfloat16)


def passes(model, args):
    """A forward and a backward pass, which leave new gradients."""
    for param in model.parameters():
        param.grad = None
    inputs = torch.ones(args.batch, args.width, device=args.device, dtype=torch.bfloat16)
    model(inputs).float().square().mean().backward()


def synchronize(args):
    """Wait for the device."""
    if args.device.type == "cuda":
        torch.cuda.synchronize()


def timed(function, args):
    """Return the median time of a call, with the device's part, in milliseconds."""
    found = []
    for _ in range(args.rounds + 2):
        synchronize(args)
        start = time.perf_counter()
        function()
        synchronize(args)
        found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found[2:])


def trained(make, args):
    """Train a new model for three steps; return its weights, and the most memory of the device, in MiB."""
    model = model_of(args)
    optimizer = make(model)
    if args.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        passes(model, args)
        optimizer.step()
    memory = torch.cuda.max_memory_allocated() / 2**20 if args.device.type == "cuda" else 0.0
    return [param.detach().cpu() for param in model.parameters()], memory


def main():
    """Print memory, bits and times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bucket-mib", type=int, default=64)
    args = parser.parse_args()
    options = {"lr": 1e-4}
    kinds = {
        "nbopt.torch.AdamW(master_weights=True)": lambda model: nbopt.torch.AdamW(
            model.parameters(), master_weights=True, **options
        ),
        "Offload": lambda model: nbopt.torch.Offload(
            model, nbopt.torch.AdamW, bucket_bytes=args.bucket_mib << 20, **options
        ),
        "Offload, gradient_clip_norm=1": lambda model: nbopt.torch.Offload(
            model, nbopt.torch.AdamW, bucket_bytes=args.bucket_mib << 20, gradient_clip_norm=1.0, **options
        ),
    }
    count = args.layers * args.width**2
    print(f"{count / 1e6:.0f} million parameters in {args.layers} tensors, bfloat16, on {args.device}")
    weights = {}
    for name, make in kinds.items():
        weights[name], memory = trained(make, args)
        print(f"  {name:40} {memory:9.0f} MiB of the device at most")
    first, second, _ = weights.values()
    print(f"  the same bits with and without offload: {all(map(torch.equal, first, second))}")
    del weights, first, second

    for name in ("Offload", "Offload, gradient_clip_norm=1"):
        model = model_of(args)
        optimizer = kinds[name](model)

        def whole(model=model, optimizer=optimizer):
            passes(model, args)
            optimizer.step()

        def copies(hosts=optimizer._hosts):
            pairs = hosts.pairs.values()
            params, gradients = [*hosts.pairs], [pair.gradient for pair in pairs]
            here = hosts.copies.down(gradients, [param.grad for param in params], hosts.copies.now())
            hosts.copies.wait(here)
            hosts.copies.wait(hosts.copies.up(params, [pair.host for pair in pairs]))

        times = {"offload": timed(whole, args), "copies": timed(copies, args)}
        with mock.patch.object(Copies, "_copied", lambda *given: None):
            times["host"] = timed(optimizer.step, args)
        optimizer.close()
        times["backward"] = timed(lambda model=model: passes(model, args), args)
        alone = times["backward"] + times["host"] + times["copies"]
        hidden = (alone - times["offload"]) / times["copies"]
        print(f"{name}: " + ", ".join(f"{key} {value:.1f} ms" for key, value in times.items()))
        print(f"  {100 * hidden:.0f}% of the copies' time is hidden")
        print(f"  the step on the host moves {28e-6 * count / times['host']:.1f} GB/s")


if __name__ == "__main__":
    main()
