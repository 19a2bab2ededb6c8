"""Measure nbopt beside the memory's own speed and beside other libraries.

All is measured in one process, which prints how it stands.

    python asv_bench/compare.py --json results.json       # everything: five minutes, on an idle machine
    python asv_bench/compare.py --quick                   # smaller tensors, few rounds: does it run?
    python asv_bench/compare.py --rows 'bandwidth-*' resnet50
    python asv_bench/compare.py --rows huge               # by name only: needs 18 GB
    python asv_bench/compare.py --report                  # a page with figures, in five minutes: report.py

All libraries have two threads on the same two processors. Contenders take turns in random order; a ratio is
that of the medians over all turns, its interval the bootstrap's 95%. Libraries that are not installed are
left out, and the table says so."""

import argparse
import contextlib
import datetime
import fnmatch
import json
import math
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

THREADS = 2
# Before any library is imported and counts processors.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
for _variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = str(THREADS)

import family  # noqa: E402, F401  (their rows)
import muon_rows  # noqa: E402, F401
from rows import ROWS, Scale  # noqa: E402

import nbopt  # noqa: E402


def machine():
    """Return what the numbers depend on."""
    about = {"model name": platform.processor(), "flags": ""}
    with contextlib.suppress(OSError):
        lines = (line.partition(":") for line in open("/proc/cpuinfo"))
        about.update({key.strip(): value.strip() for key, _, value in lines})
    wide = [flag for flag in ("avx512f", "avx2", "avx") if flag in about["flags"].split()]
    versions = {"nbopt": nbopt.__version__, "python": platform.python_version()}
    for package in ("numba", "llvmlite", "numpy", "torch", "jax", "optax", "pytorch_optimizer", "deepspeed"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    from nbopt_backends.cpu.threads import threading_layer

    return {
        "cpu": about["model name"],
        "family, model, stepping": [about.get(key) for key in ("cpu family", "model", "stepping")],
        "vectors": wide[0] if wide else None,
        "flags": about["flags"],
        "processors": os.cpu_count(),
        "threads": THREADS,
        "threading_layer": threading_layer(),
        "load_average": os.getloadavg()[0],
        "system": platform.platform(),
        "versions": versions,
        "commit": git.stdout.strip(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
    }


class Others:
    """How much of the processors other processes take while a row is measured.

    A busy machine makes bad numbers, so the report says so.
    """

    def __init__(self):
        self.start = self._now()

    def _now(self):
        busy = math.nan
        with contextlib.suppress(OSError):
            # user, nice, system, and after idle and iowait: irq, softirq, steal
            ticks = open("/proc/stat").readline().split()[1:9]
            busy = sum(int(t) for k, t in enumerate(ticks) if k not in (3, 4)) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return busy - sum(own[:4]), own.elapsed

    def processors(self):
        """Return how many processors others kept busy since the start, on average.

        It is NaN if the system doesn't say.
        """
        (busy, elapsed), (busy_before, before) = self._now(), self.start
        return max(0.0, (busy - busy_before) / (elapsed - before))


def in_units(seconds):
    """Return a time as people read it."""
    for factor, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def lines(name, record):
    """Return the table's lines for one row."""
    found = [f"{name}: {record['what']}"]
    times = [f"{contender} {in_units(t['median'])}" for contender, t in record["seconds"].items()]
    if "bytes" in record:
        times.append(f"{record['bytes'] / record['seconds']['nbopt']['median'] / 1e9:.1f} GB/s")
    if times:
        found.append(f"    {', '.join(times)}")
    if record["others"] > 0.1:
        found.append(f"    disturbed: other processes kept {record['others']:.1f} processors busy")
    found += [
        f"    {contender}: left out, {reason}" for contender, reason in record.get("absent", {}).items()
    ]
    for check in record["checks"]:
        if check["value"] is None:
            found.append(f"    {check['what']}")
            continue
        interval = "" if check["low"] == check["high"] else f"[{check['low']:.3g}, {check['high']:.3g}]"
        verdict = {None: "", True: "met", False: "NOT MET"}[check["met"]]
        value = f"{check['value']:.3g} {check['unit']}".strip()
        found.append(
            f"    {check['what']:<32} {value:>10}  {interval:<16} {check['bar'] or '':<8} {verdict}".rstrip()
        )
    return found


def chosen(patterns):
    """Return the names of rows that the patterns pick."""
    names = []
    for pattern in patterns:
        matching = [
            name
            for name, (_, _, by_name_only) in ROWS.items()
            if name == pattern or (fnmatch.fnmatch(name, pattern) and not by_name_only)
        ]
        if not matching:
            raise SystemExit(f"no row is called {pattern!r}; there are {', '.join(ROWS)}")
        names += [name for name in matching if name not in names]
    return names


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", nargs="+", default=["*"], metavar="NAME", help=f"names or patterns, of {', '.join(ROWS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller tensors and few rounds; the bars mean nothing then"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything here, every turn's time included"
    )
    parser.add_argument(
        "--report",
        type=Path,
        nargs="?",
        const=Path("nbopt-report.html"),
        metavar="FILE",
        help="in place of the rows, write a page with figures of nbopt beside other libraries",
    )
    args = parser.parse_args()
    names = chosen(args.rows)
    nbopt.set_backend("cpu", rng_seed=0)
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(THREADS)
    if args.report:
        import report as page

        page.write(args.report, machine(), args.quick)
        return
    report = {"machine": machine(), "quick": args.quick, "rows": {}}
    about = report["machine"]
    print(
        f"{about['cpu']} ({about['vectors']}), {THREADS} threads ({about['threading_layer']}), "
        f"load {about['load_average']:.1f}, commit {about['commit']}"
    )
    print(", ".join(f"{package} {version}" for package, version in about["versions"].items()))
    if args.quick:
        print("quick: tensors are smaller than the names say, and the bars mean nothing")
    for name in names:
        what, function, _ = ROWS[name]
        others = Others()
        record = {
            "what": what,
            **function(Scale(args.quick)).as_dict(),
            "others": round(others.processors(), 2),
        }
        report["rows"][name] = record
        print("\n".join(lines(name, record)), flush=True)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    checks = [
        check for found in report["rows"].values() for check in found["checks"] if check["met"] is not None
    ]
    print(f"{sum(check['met'] for check in checks)} of {len(checks)} bars met")


if __name__ == "__main__":
    main()
