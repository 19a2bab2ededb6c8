"""A page with figures of nbopt beside other libraries, on the reader's own machine.

    python asv_bench/compare.py --report                  # nbopt-report.html, in about five minutes
    python asv_bench/compare.py --report --quick          # smaller tensors, in one
    python asv_bench/compare.py --report step.svg         # the first figures alone, as a picture

A step is timed as a training has it: other work runs between two steps, so caches are cold. Each contender
updates arrays of its own, of the same values. All stand in the page by the same rule, the faster and the
slower.
"""

import html
import sys
import time

import numpy as np
from benchmarks import OPTIMIZERS, Job, peers, requires
from benchmarks.models import MODELS
from benchmarks.side_by_side import between_steps, median

#: Seconds for all of the page, to measure in.
BUDGET = {False: 270, True: 40}
#: And for each figure of the picture.
_OF_PICTURE = 12
_FEWEST, _MOST = 5, 200  # steps of each contender
_DRAWN = 3  # figures in the picture
_WIDTH, _LABEL, _BAR = 760, 210, 22  # of a figure, in pixels
_OURS = ("nbopt", "nbopt.torch")


def cases(quick):
    """Return (title, contender -> what makes its step) for each figure."""
    small = [(200, 100)] * 20
    gpt2 = small if quick else MODELS["gpt2"](layers=2)
    resnet = small if quick else MODELS["resnet50"]()
    return [
        ("Adam, GPT-2's layers, 54 M elements in 28 tensors", _of_all("adam", gpt2)),
        ("Adam, 300 tensors of 1000 elements", _of_all("adam", [(1000,)] * 300)),
        ("RMSProp, ResNet-50's 161 tensors", _of_all("rmsprop", resnet)),
        ("Adam, one tensor of 100 elements", _of_all("adam", [(100,)])),
        ("SGD with momentum, ResNet-50's 161 tensors", _of_all("momentum", resnet)),
        *(
            (f"{name}, GPT-2's layers", _of_packages(name, others, gpt2))
            for name, others in {
                "LAMB": ["pytorch_optimizer.Lamb"],
                "Adafactor": ["pytorch_optimizer.AdaFactor", "torch.optim.Adafactor"],
                "Prodigy": ["pytorch_optimizer.Prodigy"],
                "AdaBelief": ["pytorch_optimizer.AdaBelief"],
            }.items()
        ),
    ]


def _of_all(name, shapes):
    return {
        "nbopt": lambda: Job(OPTIMIZERS[name](), shapes).step,
        "nbopt.torch": lambda: peers.dropin_step(name, shapes),
        "PyTorch foreach": lambda: peers.torch_step(name, shapes, foreach=True),
        "PyTorch fused": lambda: peers.torch_step(name, shapes, fused=True),
        "optax jit": lambda: peers.optax_step(name, shapes),
    }


def _of_packages(name, others, shapes):
    def step(place):
        package, kind = place.rsplit(".", 1)
        return getattr(requires(package), kind)(peers._torch_parameters(shapes)).step

    return {"nbopt.torch": lambda: step(f"nbopt.torch.{name}"), **{o: lambda o=o: step(o) for o in others}}


def measured(makes, between, seconds):
    """Time the contenders of a figure, in turns of random order.

    Parameters
    ----------
    makes : dict of str to callable
        Contender -> what makes its step.
    between : callable
        What runs before each step.
    seconds : float
        What all of it may take.

    Returns
    -------
    (dict of str to numpy.ndarray, dict of str to str)
        Contender -> seconds of each step; and why others are absent.
    """
    end, steps, absent = time.perf_counter() + seconds, {}, {}
    for name, make in makes.items():
        try:
            steps[name] = make()
            steps[name]()  # compiles
        except (NotImplementedError, RuntimeError, TypeError) as reason:
            absent[name] = " ".join(str(reason).split())[:100]
            steps.pop(name, None)
    found, order = {name: [] for name in steps}, np.random.default_rng(0)
    for turn in range(_MOST):
        if turn >= _FEWEST and time.perf_counter() > end:
            break
        for name in order.permutation([*steps]):
            between()
            start = time.perf_counter()
            steps[name]()
            found[name].append(time.perf_counter() - start)
    # The first of them are those in which threads are tried and caches filled.
    return {name: np.array(times[len(times) // 5 :]) for name, times in found.items()}, absent


def write(path, machine, quick):
    """Measure all, and write the page.

    Parameters
    ----------
    path : pathlib.Path
    machine : dict
        As compare.py finds it out.
    quick : bool
    """
    is_picture = path.suffix == ".svg"
    every = cases(quick)[:_DRAWN] if is_picture else cases(quick)
    budget = _OF_PICTURE if is_picture else BUDGET[quick] / len(every)
    between = [*between_steps().values()][-1]
    figures = []
    for number, (title, makes) in enumerate(every):
        progress(number, len(every), title)
        figures.append((title, *measured(makes, between, budget)))
    progress(len(every), len(every), f"written to {path}")
    path.write_text((picture if is_picture else page)(figures, machine, quick), encoding="utf-8")


def progress(done, of, text, stream=None):
    """Show how far it is: a bar on a terminal, lines elsewhere."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        print(f"{done} of {of}: {text}", file=stream, flush=True)
        return
    bar = "#" * round(30 * done / of)
    print(f"\r[{bar:30}] {text:60.60}", end="\n" if done == of else "", file=stream, flush=True)


def page(figures, machine, quick):
    """Return the page as HTML.

    Parameters
    ----------
    figures : list of (str, dict, dict)
        Title, contender -> seconds, contender -> why it is absent.
    machine : dict
    quick : bool
    """
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    note = "<p><b>A quick run: tensors are smaller than the titles say.</b></p>" if quick else ""
    parts = "\n".join(_figure(*figure) for figure in figures)
    return f"""<!doctype html>
<meta charset="utf-8">
<title>nbopt beside other libraries</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: {_WIDTH}px; margin: 2em auto; color: #222 }}
svg text {{ font: 13px sans-serif }}
small {{ color: #666 }}
</style>
<h1>nbopt beside other libraries</h1>
<p>The time of one step, with other work between two steps. Bars are medians, thin lines their 95% interval.
Shorter is better.</p>
{note}
<p>{html.escape(machine["cpu"])}, {machine["threads"]} threads, {html.escape(machine["system"])}.<br>
{html.escape(versions)}.<br>
{machine["date"][:10]}, commit {html.escape(machine["commit"] or "unknown")}, by
<code>{html.escape(machine["command"])}</code></p>
{parts}
"""


def picture(figures, machine, quick):
    """Return the figures one below the other, as SVG; see `page` for the arguments."""
    parts, y = [], 14
    for title, seconds, _ in figures:
        rows = {name: median(times) for name, times in seconds.items()}
        parts.append(f'<text x="8" y="{y + 14}" font-weight="bold">{html.escape(title)}</text>')
        parts.append(f'<g transform="translate(0 {y + 24})">{_bars(rows)}</g>')
        y += 24 + _BAR * len(rows) + 22
    note = "a quick run of smaller tensors, " if quick else ""
    small = f"{note}{machine['cpu']}, {machine['threads']} threads, {machine['date'][:10]}; " + ", ".join(
        f"{name} {machine['versions'][name]}"
        for name in ("nbopt", "torch", "optax")
        if name in machine["versions"]
    )
    parts.append(f'<text x="8" y="{y}" font-size="11" fill="#666">{html.escape(small)}</text>')
    size = f'viewBox="0 0 {_WIDTH} {y + 14}" width="{_WIDTH}" height="{y + 14}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _figure(title, seconds, absent):
    rows = {name: median(times) for name, times in seconds.items()}
    lines = [f"<h2>{html.escape(title)}</h2>"]
    if rows:
        lines += [_svg(rows), f"<p>{html.escape(verdict(rows))}</p>"]
    lines += [
        f"<p><small>{html.escape(name)} is absent: {html.escape(reason)}</small></p>"
        for name, reason in absent.items()
    ]
    return "\n".join(lines)


def _svg(rows):
    """Return the bars as SVG: contender -> median, low, high in seconds."""
    return f'<svg width="{_WIDTH}" height="{_BAR * len(rows) + 6}" role="img">\n{_bars(rows)}\n</svg>'


def _bars(rows):
    longest = max(high for _, _, high in rows.values())
    room, found = _WIDTH - _LABEL - 90, []
    for place, (name, (value, low, high)) in enumerate(sorted(rows.items(), key=lambda row: row[1])):
        y, ends = place * _BAR + 3, [_LABEL + room * each / longest for each in (value, low, high)]
        found.append(
            f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="{_LABEL}" y="{y}" width="{max(1.0, ends[0] - _LABEL):.1f}" height="{_BAR - 6}" '
            f'fill="{"#d1495b" if name in _OURS else "#5b7aa6"}"/>'
            f'<line x1="{ends[1]:.1f}" x2="{ends[2]:.1f}" y1="{y + 8}" y2="{y + 8}" stroke="#222"/>'
            f'<text x="{ends[2] + 8:.1f}" y="{y + 14}">{in_units(value)}</text>'
        )
    return "\n".join(found)


def verdict(rows):
    """Return in words how nbopt's fastest stands to the fastest of the others."""
    ours = {name: value for name, (value, _, _) in rows.items() if name in _OURS}
    others = {name: value for name, (value, _, _) in rows.items() if name not in _OURS}
    if not ours or not others:
        return "There is nothing to compare with here."
    mine, theirs = min(ours, key=ours.__getitem__), min(others, key=others.__getitem__)
    times = others[theirs] / ours[mine]
    if times >= 1:
        return f"{theirs}, the fastest of the others, takes {times:.2f} times as long as {mine}."
    return f"{mine} takes {1 / times:.2f} times as long as {theirs}, the fastest of the others."


def in_units(seconds):
    """Return a time as people read it."""
    for factor, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
