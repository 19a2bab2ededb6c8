"""Compare this checkout with another commit: the time of small steps, hot and cold.

    python asv_bench/against.py main~1                    # every row: about a minute
    python asv_bench/against.py main~1 --rows 'adapter-*' --rounds 40

Each commit has a process of its own. The two take turns of random order on the same processors, so that
whatever else the machine does hits both alike. A *hot* turn repeats the step alone. In a *cold* turn 64 MB of
other memory are touched before each step, as in training. A row compares the medians of all turns, with the
bootstrap's 95% interval.
"""

import argparse
import fnmatch
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent

#: Row -> (what makes the step, the optimizer, the shapes).
ROWS = {
    "1x100-rmsprop": ("native", "rmsprop", [(100,)]),
    "1x100-adam": ("native", "adam", [(100,)]),
    "300-rmsprop": ("native", "rmsprop", [(1000,)] * 300),
    "300-adam": ("native", "adam", [(1000,)] * 300),
    "adapter-1x100": ("adapter", "rmsprop", [(100,)]),
    "adapter-300": ("adapter", "rmsprop", [(1000,)] * 300),
    "adapter-300-fresh": ("fresh", "rmsprop", [(1000,)] * 300),
    "adapter-300-adam": ("adapter", "adam", [(1000,)] * 300),
}


def answer(names):
    """Be one of the two processes: read the name of a row and hot or cold, print the seconds of a step."""
    from benchmarks import OPTIMIZERS, Job, peers

    import nbopt

    nbopt.set_backend("cpu", rng_seed=0)
    made = {
        "native": lambda optimizer, shapes: Job(OPTIMIZERS[optimizer](), shapes).step,
        "adapter": peers.adapter_step,
        "fresh": lambda optimizer, shapes: peers.adapter_step(optimizer, shapes, fresh=True),
    }
    steps = {name: made[ROWS[name][0]](*ROWS[name][1:]) for name in names}
    other = np.zeros(8 << 20)
    for step in steps.values():
        for _ in range(5):
            step()
    print("ready", flush=True)
    for line in sys.stdin:
        name, way = line.split()
        step, seconds = steps[name], []
        step()
        for _ in range(30 if way == "hot" else 5):
            if way == "cold":
                other += 1.0
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        print(statistics.median(seconds), flush=True)


def process(tree, names):
    """Start `answer` with the nbopt of a tree."""
    command = [sys.executable, str(HERE / "against.py"), "--answer", *names]
    paths = os.pathsep.join([str(tree), str(HERE)])
    started = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tree,
    )
    started.stdout.readline()
    return started


def ask(process, name, way):
    """Return the seconds of a step in a process."""
    process.stdin.write(f"{name} {way}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="what to compare with, such as main~1")
    parser.add_argument(
        "--rows", nargs="+", default=["*"], metavar="NAME", help=f"names or patterns, of {', '.join(ROWS)}"
    )
    parser.add_argument("--rounds", type=int, default=15, help="turns of each process for each row")
    args = parser.parse_args()
    from benchmarks.side_by_side import ratio

    names = [name for name in ROWS if any(fnmatch.fnmatch(name, pattern) for pattern in args.rows)]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", args.commit], capture_output=True, check=True, cwd=HERE.parent
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        both = {"before": process(folder, names), "now": process(HERE.parent, names)}
        print(f"{'':20}{'before':>10}{'now':>10}  now / before")
        for name in names:
            for way in ("hot", "cold"):
                seconds = {side: [] for side in both}
                for _ in range(args.rounds):
                    for side in rng.permutation(list(both)):
                        seconds[side].append(ask(both[side], name, way))
                value, low, high = ratio(np.array(seconds["now"]), np.array(seconds["before"]))
                times = "".join(f"{np.median(seconds[side]) * 1e6:7.0f} us" for side in both)
                print(f"{name:20}{times}  {value:.3f} [{low:.3f}, {high:.3f}] {way}", flush=True)
        for one in both.values():
            one.stdin.close()
            one.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer(sys.argv[2:])
    else:
        main()
