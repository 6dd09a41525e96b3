"""Draw how close each contender comes to what the machine can do, layer by layer.

For every operation with known traffic there is a row. On the left the roofline as it was first drawn (S.
Williams, A. Waterman and D. Patterson, "Roofline: An Insightful Visual Performance Model for Multicore
Architectures", 2009): flops a second over flops per byte, under the bandwidth of memory and the peak of the
multiply-adds, both measured in the same run. On the right the same rates by layer, with the contenders side
by side, and the roof of each layer over them. Poolings have bytes a second, under what a copy reaches.

Two things rise above a roof: arrays that never leave the caches, and Winograd's algorithm, which needs fewer
products than the definition that flops are counted by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import SCALE, by_operation, peers_of, read_cases

Case = Mapping[str, Any]

#: Width of a layer's slot that the marks of its contenders share; slots are 1 apart.
SLOT = 0.72
#: Panels of poolings in a row.
BESIDE = 3
OURS = "#d1345b"
COLOURS = ("#3a6ea5", "#7fb069", "#e6aa3c", "#8f6bb3", "#4aa3a2", "#a05d45", "#777777", "#b5a642")
MARKS = "Ds^vP*X"


def contenders(case: Case) -> dict[str, float]:
    """Seconds of all that were timed, fastconv first.

    >>> contenders({"fastconv": 0.5, "peers": {"torch": 1.0}})
    {'fastconv': 0.5, 'torch': 1.0}
    """
    return {"fastconv": case["fastconv"], **case["peers"]}


def has_roof(case: Case) -> bool:
    """Whether it is known what bounds the case: not for the steps of a training, nor in old files."""
    return case.get("yardstick") is not None and (case["unit"] == "GB/s" or "traffic" in case)


def peak(cases: Sequence[Case]) -> float:
    """What the yardstick reached, at its best in any of the cases, in work a second.

    >>> fast, slow = {"seconds": 0.5, "work": 4e9}, {"seconds": 1.0, "work": 4e9}
    >>> peak([{"yardstick": fast}, {"yardstick": slow}])
    8000000000.0
    """
    return max(case["yardstick"]["work"] / case["yardstick"]["seconds"] for case in cases)


def intensity(case: Case) -> float:
    """Flops for each byte that has to come from memory or go there.

    >>> intensity({"work": 8e6, "traffic": 4e6})
    2.0
    """
    return float(case["work"] / case["traffic"])


def roof(case: Case, top: float, bandwidth: float) -> float:
    """The most work a second: of multiply-adds, or as far as memory feeds them.

    >>> roof({"work": 8e6, "traffic": 4e6, "unit": "GFLOP/s"}, top=200e9, bandwidth=30e9)
    60000000000.0
    """
    if case["unit"] == "GB/s":
        return float(case["yardstick"]["work"] / case["yardstick"]["seconds"])
    return min(top, bandwidth * intensity(case))


def slots(cases: Sequence[Case]) -> list[Case]:
    """In the order in which they are drawn: by intensity, poolings as they ran."""
    if cases[0]["unit"] == "GB/s":
        return list(cases)
    return sorted(cases, key=intensity)


def marks(peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each contender is drawn with: a colour and a mark by library, hollow for another memory order.

    >>> styles = marks(["torch", "torch channels_last"])
    >>> [style["marker"] for style in styles.values()]
    ['o', 'D', 'D']
    >>> [style["markerfacecolor"] for style in styles.values()]
    ['#d1345b', '#3a6ea5', 'white']
    """
    styles = {"fastconv": {"color": OURS, "marker": "o", "markersize": 8, "zorder": 4}}
    styles["fastconv"]["markerfacecolor"] = OURS
    libraries = list(dict.fromkeys(name.split()[0] for name in peers))
    for name in peers:
        library, *order = name.split()
        place = libraries.index(library)
        colour = COLOURS[place % len(COLOURS)]
        styles[name] = {
            "color": colour,
            "marker": MARKS[place % len(MARKS)],
            "markersize": 6,
            "markerfacecolor": "white" if order else colour,
            "zorder": 3,
        }
    return styles


def plot(results: Mapping[str, Any], file: Path, peers: Sequence[str] = ()) -> None:
    """Draw the rooflines of all operations that have one; a ValueError says that none has.

    Without `peers` all other libraries are drawn, and fastconv as it chooses itself.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    known = [case for case in read_cases(results) if has_roof(case)]
    if not known:
        raise ValueError("no operation with a roof: these results lack the traffic of each layer")
    bandwidth = max(results["machine_info"]["conditions"]["memory"].values())
    groups = {operation: slots(cases) for operation, cases in by_operation(known).items()}
    styles = marks(peers or [name for name in peers_of(known) if not name.startswith("fastconv")])
    flops = {name: cases for name, cases in groups.items() if cases[0]["unit"] != "GB/s"}
    copies = {name: cases for name, cases in groups.items() if name not in flops}
    lines = len(flops) + -(-len(copies) // BESIDE)
    figure = pyplot.figure(figsize=(17, 4.3 * lines + 1), layout="constrained")
    grid = figure.add_gridspec(lines, 3 * BESIDE)
    for line, (operation, cases) in enumerate(flops.items()):
        left = figure.add_subplot(grid[line, :BESIDE])
        right = figure.add_subplot(grid[line, BESIDE:], sharey=left)
        top = peak(cases)
        _draw_roofline(left, cases, top, bandwidth, styles)
        _draw_layers(right, cases, top, bandwidth, styles)
        right.tick_params(labelleft=False)
        left.set_title(operation, loc="left", fontweight="bold")
    for index, (operation, cases) in enumerate(copies.items()):
        line, column = divmod(index, BESIDE)
        axes = figure.add_subplot(grid[len(flops) + line, 3 * column : 3 * column + 3])
        _draw_layers(axes, cases, peak(cases), bandwidth, styles)
        axes.set_ylabel("GB/s; the roof is a NumPy copy")
        axes.set_title(operation, loc="left", fontweight="bold")
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=min(8, len(handles)))
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _draw_roofline(
    axes: Any, cases: Sequence[Case], top: float, bandwidth: float, styles: Mapping[str, dict[str, Any]]
) -> None:
    """Rates over intensities, on logarithmic axes."""
    scale = SCALE[cases[0]["unit"]]
    intensities = [intensity(case) for case in cases]
    ends = min(*intensities, top / bandwidth) / 2, max(*intensities, top / bandwidth) * 2
    ridge = top / bandwidth
    points = [ends[0], ridge, ends[1]]
    axes.plot(points, [min(top, bandwidth * at) / scale for at in points], color="black", linewidth=1.5)
    axes.fill_between(points, [min(top, bandwidth * at) / scale for at in points], color="black", alpha=0.05)
    for case, at in zip(cases, intensities, strict=True):
        for name, seconds in contenders(case).items():
            if name in styles:
                axes.plot(at, case["work"] / seconds / scale, linestyle="none", **styles[name])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*ends)
    axes.set_xlabel("flops per byte of x, weight and y")
    axes.set_ylabel(cases[0]["unit"])
    axes.grid(alpha=0.25)
    axes.set_title(
        f"roof: {bandwidth / 1e9:.0f} GB/s, {top / scale:.0f} {cases[0]['unit']}",
        loc="right",
        fontsize="medium",
    )
    _plain_numbers(axes)


def _plain_numbers(axes: Any) -> None:
    """1, 10, 100 rather than powers."""
    axes.yaxis.set_major_formatter("{x:g}")
    if axes.get_xscale() == "log":
        axes.xaxis.set_major_formatter("{x:g}")


def _draw_layers(
    axes: Any, cases: Sequence[Case], top: float, bandwidth: float, styles: Mapping[str, dict[str, Any]]
) -> None:
    """A slot for each layer: its roof, and a mark for each contender under it."""
    scale = SCALE[cases[0]["unit"]]
    for slot, case in enumerate(cases):
        height = roof(case, top, bandwidth) / scale
        ends = [slot - 0.5, slot + 0.5]
        axes.plot(ends, [height] * 2, color="black", linewidth=1.5, label="" if slot else "roof")
        if slot % 2:
            axes.axvspan(*ends, color="black", alpha=0.035, linewidth=0)
    for index, (name, style) in enumerate(styles.items()):
        offset = SLOT * ((index + 0.5) / len(styles) - 0.5)
        timed = [(slot, contenders(case).get(name), case["work"]) for slot, case in enumerate(cases)]
        found = [(slot + offset, work / seconds / scale) for slot, seconds, work in timed if seconds]
        if found:
            axes.plot(*zip(*found, strict=True), linestyle="none", label=name, **style)
    axes.set_yscale("log")
    axes.set_xlim(-0.5, len(cases) - 0.5)
    names = [case["layer"] for case in cases]
    axes.set_xticks(range(len(cases)), names, rotation=50, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", length=0, labelsize="small")
    axes.grid(alpha=0.25, axis="y")
    _plain_numbers(axes)
