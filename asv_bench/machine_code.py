"""Count the instructions of the CUDA kernels' machine code. Needs no GPU.

    pip install -e ".[cuda13]" nvidia-cuda-nvdisasm
    python asv_bench/machine_code.py
    python asv_bench/machine_code.py --rows "adam, bfloat16"  # some rows, and what their instructions are

ptxas compiles for compute capability 9.0. Counted is the way of aligned elements through the kernel's loop,
where the batch size is a power of two, and no operand of a division or a square root is so small or so large
that it takes the long way. A kernel can run at the speed of memory as long as it has fewer instructions for
each byte that it moves than the GPU starts while memory delivers one: see docs/gpu-results.md."""

import argparse
import heapq
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

# From a checkout, installed or not.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from benchmarks import OPTIMIZERS  # noqa: E402

import nbopt  # noqa: E402
from nbopt_backends.lowering.text import ITEM_SIZES  # noqa: E402

CAPABILITY = (9, 0)
MIXED = ("bfloat16", "bfloat16", "float32", "float32")
#: name -> (optimizer, storage of param, grad and states, mantissa bits that a stochastic rounding keeps).
ROWS = {
    **{f"{name}, float32": (name, ("float32",), 0) for name in OPTIMIZERS},
    "rmsprop, bfloat16, states float32": ("rmsprop", MIXED, 0),
    "rmsprop, bfloat16, states float32, stochastic": ("rmsprop", MIXED, 7),
    "rmsprop, bfloat16": ("rmsprop", ("bfloat16",), 0),
    "rmsprop, bfloat16, stochastic": ("rmsprop", ("bfloat16",), 7),
    "adam, bfloat16, states float32, stochastic": ("adam", MIXED, 7),
    "adam, bfloat16, stochastic": ("adam", ("bfloat16",), 7),
    "rmsprop, float16, stochastic": ("rmsprop", ("float16",), 10),
}


class Kernel:
    """What ptxas makes of a kernel.

    Attributes
    ----------
    registers : int
        For each thread.
    spilled : bool
        Whether values live in local memory.
    code : bytes
        The cubin.
    """

    def __init__(self, text):
        from cuda.bindings import nvjitlink

        from nbopt_backends.cuda import toolchain
        from nbopt_backends.cuda.kernels import N_ARGUMENTS

        code = toolchain.ltoir(text, "cuda_kernel", "update", N_ARGUMENTS, CAPABILITY)
        linker = nvjitlink.create(3, ["-arch=sm_{}{}".format(*CAPABILITY), "-lto", "-Xptxas=-v"])
        nvjitlink.add_data(linker, nvjitlink.InputType.LTOIR, code, len(code), "kernel")
        nvjitlink.complete(linker)
        log, cubin = (
            bytearray(nvjitlink.get_info_log_size(linker)),
            bytearray(nvjitlink.get_linked_cubin_size(linker)),
        )
        nvjitlink.get_info_log(linker, log)
        nvjitlink.get_linked_cubin(linker, cubin)
        nvjitlink.destroy(linker)
        said = log.decode()
        self.registers = int(re.search(r"Used (\d+) registers", said)[1])
        self.spilled = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" not in said
        self.code = bytes(cubin)


def program_of(make):
    """Return the program of an optimizer, given what makes it."""
    import numpy as np

    with nbopt.use_backend("reference") as be:
        layer = nbopt.Parameters((np.zeros(3, np.float32), np.zeros(3, np.float32)))
        return make().updates(be, [layer], 0)[0].program


def kernel_of(optimizer, dtypes, kept=0):
    """Return the `Kernel` of one optimizer, and two numbers.

    They are the bytes that it moves for each element, and how many elements a thread takes at a time.

    Parameters
    ----------
    optimizer : str
        A key of `OPTIMIZERS`.
    dtypes : tuple of str
        The slots' storage; the last one is that of all slots beyond.
    kept : int
        How many mantissa bits a stochastic rounding of 16-bit slots keeps, or 0.
    """
    from nbopt_backends.cuda.dialects import DIALECT
    from nbopt_backends.cuda.kernels import update_text, vector_width

    stage = program_of(OPTIMIZERS[optimizer]).passes()[-1]
    dtypes = tuple(dtypes[min(slot, len(dtypes) - 1)] for slot in range(len(stage.names)))
    written = stage.written()
    bits = tuple(kept * (slot in written and dtypes[slot].endswith("16")) for slot in range(len(dtypes)))
    text = update_text(stage, DIALECT, dtypes, "float64" if "float64" in dtypes else "float32", kept=bits)
    moved = sum(ITEM_SIZES[dtypes[slot]] for slots in (stage.read(), written) for slot in slots)
    return Kernel(text), moved, vector_width(stage, dtypes, False, any(bits))


def disassembled(code):
    """Return the instructions of a cubin, and {label: index of the instruction behind it}."""
    tool = Path(importlib.util.find_spec("nvidia.cu13").submodule_search_locations[0]) / "bin" / "nvdisasm"
    if not tool.exists():
        raise FileNotFoundError(f"{tool} is missing; type: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        listing = subprocess.run(
            [str(tool), "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    instructions, labels = [], {}
    for line in listing.splitlines():
        label = re.match(r"(\.L_x_\d+):", line)
        instruction = re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?) ;", line)
        if label:
            labels[label[1]] = len(instructions)
        elif instruction:
            instructions.append(instruction[1])
    return instructions, labels


def way_through_the_loop(instructions, labels):
    """Return the instructions of the shortest way through the loop of a kernel.

    The loop is the smallest one that loads and stores 16 bytes at a time, or 8.

    Blocks that access less memory at a time (single elements) or call (the long way of a division) are not on
    it."""

    def target(index):
        found = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instructions[index])
        return labels[found[1]] if found else None

    def is_loop(first, last):
        body = instructions[first : last + 1]
        return all(
            any(re.search(rf"\b{kind}\.\S*(64|128)\b", line) for line in body) for kind in ("LDG", "STG")
        )

    loops = [
        (target(last), last)
        for last in range(len(instructions))
        if target(last) is not None and target(last) <= last
    ]
    first, last = min((loop for loop in loops if is_loop(*loop)), key=lambda loop: loop[1] - loop[0])
    begins = {first, *(index for index in labels.values() if first < index <= last)}
    begins |= {
        index + 1
        for index in range(first, last)
        if re.search(r"\b(BRA|EXIT|RET|CALL)\b", instructions[index])
    }
    ends = dict(zip(sorted(begins), [*sorted(begins)[1:], last + 1]))

    def is_by_the_way(line):
        narrow = (
            re.search(r"\b(LDG|STG)\b", line)
            and not re.search(r"\.(64|128)\b", line.split("desc")[0])
            and not line.startswith("@")
        )
        return narrow or "CALL" in line

    ways, seen = [(0, first, ())], set()
    while ways:
        length, begin, way = heapq.heappop(ways)
        if begin == last + 1:
            return [line for start in way for line in instructions[start : ends[start]]]
        if begin in seen or begin not in ends or any(map(is_by_the_way, instructions[begin : ends[begin]])):
            continue
        seen.add(begin)
        end = ends[begin]
        final, jump = instructions[end - 1], target(end - 1)
        following = [] if jump is None else [last + 1 if jump == first else jump]
        if jump is None or final.startswith("@") or re.search(r"BRA\S* U?!?U?P\d", final):
            following.append(end)
        for block in following:
            heapq.heappush(ways, (length + end - begin, block, (*way, begin)))
    raise ValueError("no way through the loop was found: has the machine code another form?")


def main(argv=None):
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", help="only those whose names begin so, with their instructions")
    args = parser.parse_args(argv)
    print(f"{'kernel':50} {'registers':>9} {'bytes':>6} {'instructions':>12} {'of them a byte':>14}")
    print(f"{'':50} {'':>9} {'for an element':>19}")
    for name, row in ROWS.items():
        if args.rows and not name.startswith(args.rows):
            continue
        kernel, moved, width = kernel_of(*row)
        way = way_through_the_loop(*disassembled(kernel.code))
        each = len(way) / width
        print(
            f"{name:50} {kernel.registers:9} {moved:6} {each:12.1f} "
            f"{each / moved:14.2f}{'  SPILLS' * kernel.spilled}",
            flush=True,
        )
        if args.rows:
            kinds = Counter(re.sub(r"^@\S+ ", "", line).split()[0].split(".")[0] for line in way)
            print("    " + ", ".join(f"{kind} {count / width:.1f}" for kind, count in kinds.most_common()))


if __name__ == "__main__":
    main()
