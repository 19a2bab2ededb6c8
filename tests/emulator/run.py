"""Run a command with an emulated GPU: python tests/emulator/run.py python -m pytest -m gpu -n 2

numba-cuda runs as it is, compiles to PTX as it does for a GPU, and talks to a CUDA driver, which is
driver.cpp. What differs: ptxas is left out (sitecustomize.py), kernels run as C on one core, and there are no
other libraries that use a GPU. Needs a C and a C++ compiler (Linux, x86-64), and numba-cuda[cu13]. Whatever
is built stays in the folder `build` beside this file.

Settings: EMULATED_MEMORY, a GPU's memory in bytes (4 GiB); EMULATED_DEVICES, how many GPUs there are (2);
EMULATED_NOTHING=1, with which kernels do nothing, so that what the host does can be timed.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# fma and half precision in hardware; no other contraction than the PTX's own. Few optimizations: most kernels
# run a few times over little.
_C = [
    "gcc",
    "-Og",
    "-std=gnu11",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fwrapv",
    "-mfma",
    "-mf16c",
    "-w",
]


def build():
    """Return the folder of the driver, made anew where its sources have changed."""
    sources = sorted(path for path in HERE.iterdir() if path.is_file())
    mark = hashlib.blake2b(b"".join(path.read_bytes() for path in sources), digest_size=6).hexdigest()
    folder = HERE / "build" / mark
    library = folder / "libcuda.so.1"
    if not library.exists():
        (folder / "kernels").mkdir(parents=True, exist_ok=True)
        toolkit = Path(importlib.util.find_spec("nvidia.cu13").submodule_search_locations[0])
        made = library.with_suffix(f".{os.getpid()}")
        command = [
            "g++",
            "-O1",
            "-std=c++17",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            f"-I{toolkit / 'include'}",
            str(HERE / "driver.cpp"),
        ]
        subprocess.run([*command, "-o", str(made), "-ldl"], check=True)
        made.replace(library)
    return folder


def main(command):
    """Run a command with the emulated driver in front of any other."""
    folder = build()
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": os.pathsep.join(paths),
        "EMULATED_KERNELS": str(folder / "kernels"),
        "EMULATED_COMPILER": f"{sys.executable} -S {Path(__file__).resolve()} --kernel",
        "NBOPT_CACHE_DIR": str(folder / "cache"),  # kernels that can't run on a GPU
    }
    os.execvp(command[0], command)


def kernel(stem):
    """Compile stem.ptx to stem.so."""
    from ptx_to_c import translated

    ptx, c = Path(f"{stem}.ptx"), Path(f"{stem}.c")
    try:
        c.write_text(translated(ptx.read_text()))
        subprocess.run([*_C, "-shared", "-fPIC", str(c), "-o", f"{stem}.so", "-lm"], check=True)
    finally:
        ptx.unlink()
        c.unlink(missing_ok=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--kernel"]:
        kernel(sys.argv[2])
    elif sys.argv[1:]:
        main(sys.argv[1:])
    else:
        sys.exit(__doc__)
