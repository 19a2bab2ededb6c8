"""Draw what compare.py has measured.

python asv_bench/compare.py --json results.json
python asv_bench/plot.py results.json               # writes docs/images/*.png
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

IMAGES = Path(__file__).parent.parent / "docs" / "images"
# nbopt in a strong colour, the others in quiet ones, each the same in every picture.
COLOURS = {
    "nbopt": "#d1495b",
    "streaming": "#c9ced6",
    "optax jit": "#66a182",
    "PyTorch fused": "#2e4057",
    "PyTorch foreach": "#5b7aa6",
    "PyTorch for-loop": "#a9bcd9",
    "DeepSpeed CPUAdam": "#b08ea2",
}
COMPARED = {
    "rmsprop-50M": "RMSProp\n50 M elements",
    "adam-50M": "Adam\n50 M elements",
    "resnet50": "RMSProp\nResNet-50",
    "gpt2": "Adam\nGPT-2 small",
    "embeddings": "Adagrad\nrecommender",
    "300-rmsprop": "RMSProp\n300 x 1000",
    "300-adam": "Adam\n300 x 1000",
    "1x100": "RMSProp\n1 x 100",
}


def main():
    """Draw the pictures for which the file has rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="a file that compare.py --json has written")
    parser.add_argument("--out", type=Path, default=IMAGES, help="the folder for the pictures")
    args = parser.parse_args()
    report = json.loads(args.results.read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    for name, draw in {
        "bandwidth": draw_bandwidth,
        "peers": draw_peers,
        "fixed-cost": draw_fixed_cost,
    }.items():
        figure = Figure(figsize=(9, 4.5), layout="constrained")  # without pyplot: Agg, no window
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        if draw(axes, report["rows"]):
            figure.supxlabel(signature(report), fontsize=6.5, color="#777777")
            figure.savefig(args.out / f"{name}.png", dpi=150)
            print(args.out / f"{name}.png")


def signature(report):
    """Return the small print: where the numbers come from."""
    about, versions = report["machine"], report["machine"]["versions"]
    names = [
        f"{name} {versions[name]}"
        for name in ("nbopt", "numba", "torch", "jax", "optax", "deepspeed")
        if name in versions
    ]
    note = "    QUICK RUN, tensors are smaller than stated" if report["quick"] else ""
    return (
        f"{about['cpu']}, {about['threads']} threads, {about['date'][:10]}, "
        f"{about['commit']}{note}\n{', '.join(names)}"
    )


def draw_bandwidth(axes, rows):
    """Each optimizer's share of what the memory gives, a bar with its interval."""
    found = {
        name.removeprefix("bandwidth-"): row["checks"][0]
        for name, row in rows.items()
        if name.startswith("bandwidth-")
    }
    if not found:
        return False
    names = list(found)
    values, low, high = (np.array([found[name][key] for name in names]) for key in ("value", "low", "high"))
    bars = axes.barh(
        names,
        values,
        height=0.6,
        color=COLOURS["nbopt"],
        xerr=[values - low, high - values],
        error_kw={"lw": 1, "ecolor": "#333333"},
    )
    axes.bar_label(
        bars, [f"{value:.0%}" for value in values], label_type="center", color="white", weight="bold"
    )
    axes.axvline(1, color="#333333", lw=1, ls="--")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set(
        title="One step on 50 M float32 values, as a share of the memory's speed",
        xlim=(0, max(1.1, high.max() * 1.05)),
    )
    axes.set_xlabel("a plain loop over the same arrays = 100%, with the 95% interval")
    return True


def draw_peers(axes, rows):
    """The time of other libraries' steps in units of ours, grouped by what is updated."""
    groups = {name: rows[name]["seconds"] for name in COMPARED if name in rows}
    if not groups:
        return False
    labelled = set()
    for place, seconds in enumerate(groups.values()):
        contenders = [name for name in COLOURS if name in seconds]
        for k, contender in enumerate(contenders):
            times = seconds[contender]["median"] / seconds["nbopt"]["median"]
            offset = (k - (len(contenders) - 1) / 2) * 0.2
            axes.bar(
                place + offset,
                times,
                0.18,
                color=COLOURS[contender],
                label=None if contender in labelled else contender,
            )
            labelled.add(contender)
            text = f"{times:.2g}" if times < 10 else f"{times:.0f}"
            axes.annotate(
                text, (place + offset, times), (0, 2), textcoords="offset points", ha="center", fontsize=7
            )
    axes.axhline(1, color=COLOURS["nbopt"], lw=0.8, ls="--")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axes.set_xticks(range(len(groups)), [COMPARED[name] for name in groups], fontsize=8)
    axes.set(title="Time of one step, nbopt = 1 (shorter is better)")
    axes.legend(frameon=False, ncols=2, fontsize=8)
    return True


def draw_fixed_cost(axes, rows):
    """The time of a step against the number of tensors of 1000 elements."""
    found = {
        int(name.removeprefix("fixed-cost-")): row["seconds"]
        for name, row in rows.items()
        if name.startswith("fixed-cost-")
    }
    if "300-rmsprop" in rows:
        found[300] = rows["300-rmsprop"]["seconds"]
    if len(found) < 2:
        return False
    for contender, colour in COLOURS.items():
        points = sorted(
            (count, seconds[contender]["median"] * 1e6)
            for count, seconds in found.items()
            if contender in seconds
        )
        if points:
            axes.loglog(
                *zip(*points),
                "o-",
                color=colour,
                label=contender,
                lw=2.5 if contender == "nbopt" else 1.5,
                ms=5,
            )
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda us, _: f"{us / 1000:g} ms" if us >= 1000 else f"{us:g} us")
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    axes.grid(color="#eeeeee")
    axes.set(title="One RMSProp step over many small tensors", xlabel="tensors of 1000 float32 values")
    axes.legend(frameon=False, fontsize=8)
    return True


if __name__ == "__main__":
    main()
