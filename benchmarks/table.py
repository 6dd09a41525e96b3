"""Turn pytest-benchmark's JSON into tables of ratios, and plots.

    pytest --benchmark-only --benchmark-json=results.json
    python benchmarks/table.py results.json
    python benchmarks/table.py results.json --markdown --operation "conv2d forward" --peer torch numpy
    python benchmarks/table.py results.json --plot roofline.png
    python benchmarks/table.py results.json --ratios ratios.png

A ratio is a peer's time divided by fastconv's: above 1, fastconv is faster.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it finds only its own folder

Case = Mapping[str, Any]
Results = Mapping[str, Any]
Row = Sequence[str]

#: Divisors that turn work per second into the unit.
SCALE = {"GFLOP/s": 1e9, "GB/s": 1e9, "images/s": 1.0}

NOT_MEASURED = "-"


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers: what ratios are averaged by.

    >>> round(geometric_mean([0.5, 8.0]), 3)
    2.0
    """
    return math.exp(sum(map(math.log, values)) / len(values))


def ratios(case: Case) -> dict[str, float]:
    """Each peer's time divided by fastconv's.

    >>> ratios({"fastconv": 0.002, "peers": {"torch": 0.003}})
    {'torch': 1.5}
    """
    return {peer: seconds / case["fastconv"] for peer, seconds in case["peers"].items()}


def rate(case: Case) -> float:
    """Work per second of fastconv, in the case's unit.

    >>> rate({"fastconv": 0.5, "work": 3e9, "unit": "GFLOP/s"})
    6.0
    """
    return float(case["work"] / case["fastconv"] / SCALE[case["unit"]])


def fraction(case: Case) -> float | None:
    """The rate as a part of the yardstick's, which ran in the same rounds, if the case has one.

    >>> copy = {"name": "copy", "seconds": 0.25, "work": 3e9}
    >>> fraction({"fastconv": 0.5, "work": 3e9, "unit": "GB/s", "yardstick": copy})
    0.5
    """
    bound = case.get("yardstick")
    if bound is None:
        return None
    return float(case["work"] / case["fastconv"] * bound["seconds"] / bound["work"])


def percent(value: float) -> str:
    """
    >>> percent(0.8167)
    '82 %'
    """
    return f"{100 * value:.0f} %"


def by_operation(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases grouped by operation, both in the order in which they ran."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case["operation"], []).append(case)
    return groups


def peers_of(cases: Iterable[Case]) -> list[str]:
    """All peers that were measured in any of the cases, in their order.

    >>> peers_of([{"peers": {"torch": 1.0}}, {"peers": {"torch": 1.0, "scipy": 1.0}}])
    ['torch', 'scipy']
    """
    return list(dict.fromkeys(peer for case in cases for peer in case["peers"]))


def number(value: float) -> str:
    """With three digits, or as many as it has before the point.

    >>> [number(value) for value in (0.01234, 0.5, 9.876, 12.34, 123.4, 5678.9)]
    ['0.0123', '0.500', '9.88', '12.3', '123', '5679']
    """
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 2
    return f"{value:.{max(digits, 0)}f}"


def mean_ratio(cases: Sequence[Case], peer: str) -> str:
    """Geometric mean of a peer's ratios; one over fewer layers than there are says so."""
    found = [ratios(case)[peer] for case in cases if peer in case["peers"]]
    if not found:
        return NOT_MEASURED
    part = f" ({len(found)} of {len(cases)})" if len(found) < len(cases) else ""
    return number(geometric_mean(found)) + part


def table(cases: Sequence[Case]) -> list[Row]:
    """Header, one row per layer, and the geometric means: the rows of one operation.

    >>> case = {"layer": "conv1", "shape": "1x3x8x8 -> 4", "algorithm": "im2col", "rounds": 5,
    ...         "work": 2e6, "unit": "GFLOP/s", "fastconv": 0.001, "peers": {"torch": 0.002},
    ...         "yardstick": {"name": "FMA peak", "seconds": 0.001, "work": 4e6}}
    >>> for row in table([case, {**case, "layer": "conv2", "peers": {"torch": 0.008, "scipy": 0.1}}]):
    ...     print(" | ".join(row))
    layer | shape | algorithm | rounds | ms | GFLOP/s | of FMA peak | torch | scipy
    conv1 | 1x3x8x8 -> 4 | im2col | 5 | 1.00 | 2.00 | 50 % | 2.00 | -
    conv2 | 1x3x8x8 -> 4 | im2col | 5 | 1.00 | 2.00 | 50 % | 8.00 | 100
    geometric mean |  |  |  |  | 2.00 | 50 % | 4.00 | 100 (1 of 2)
    """
    peers = peers_of(cases)
    fractions = [fraction(case) for case in cases]
    known = [value for value in fractions if value is not None]
    bound = [f"of {cases[0]['yardstick']['name']}"] if known else []
    rows: list[Row] = [("layer", "shape", "algorithm", "rounds", "ms", cases[0]["unit"], *bound, *peers)]
    for case, part in zip(cases, fractions, strict=True):
        found = ratios(case)
        cells = [percent(part)] if part is not None else []
        cells += [number(found[peer]) if peer in found else NOT_MEASURED for peer in peers]
        facts = (case["layer"], case["shape"], case["algorithm"], str(case["rounds"]))
        rows.append((*facts, number(case["fastconv"] * 1e3), number(rate(case)), *cells))
    mean_rate = number(geometric_mean([rate(case) for case in cases]))
    means = [percent(geometric_mean(known))] if known else []
    means += [mean_ratio(cases, peer) for peer in peers]
    rows.append(("geometric mean", "", "", "", "", mean_rate, *means))
    return rows


def left_out(cases: Sequence[Case]) -> list[str]:
    """A line for each contender and reason: who was not measured where.

    >>> case = {"layer": "conv1", "left_out": {"torch": "not installed", "naive": "slow"}}
    >>> left_out([case, {"layer": "conv2", "left_out": {"torch": "not installed"}}])
    ['torch: not installed', 'naive: slow (conv1)']
    """
    layers: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        for absent in case["left_out"].items():
            layers.setdefault(absent, []).append(case["layer"])
    return [
        f"{name}: {reason}" + (f" ({', '.join(where)})" if len(where) < len(cases) else "")
        for (name, reason), where in layers.items()
    ]


def aligned(rows: Sequence[Row], markdown: bool) -> str:
    """Rows as lines of text, the first of them a header; text to the left, numbers to the right.

    >>> print(aligned([("layer", "torch"), ("conv1", "1.50")], markdown=True))
    | layer | torch |
    |:------|------:|
    | conv1 |  1.50 |
    >>> print(aligned([("layer", "torch"), ("conv1", "1.50")], markdown=False))
    layer  torch
    conv1   1.50
    """
    text = {"layer", "shape", "algorithm", "geometric means", "contender"}
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [title in text for title in rows[0]]

    def line(row: Row) -> str:
        cells = zip(row, widths, left, strict=True)
        padded = [cell.ljust(width) if to_left else cell.rjust(width) for cell, width, to_left in cells]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    lines = [line(row) for row in rows]
    if markdown:
        rules = [
            f":{'-' * (width + 1)}" if to_left else f"{'-' * (width + 1)}:"
            for width, to_left in zip(widths, left, strict=True)
        ]
        lines.insert(1, f"|{'|'.join(rules)}|")
    return "\n".join(lines)


def conditions(machine: Mapping[str, Any]) -> list[str]:
    """What the times depend on, a line each."""
    found = machine["conditions"]
    environment = ", ".join(f"{name}={value}" for name, value in found["environment"].items())
    peaks = ", ".join(
        f"{dtype} {rate / 1e9:.0f} GFLOP/s on {threads} thread{'s' if threads != '1' else ''}"
        for dtype, rates in found["FMA peak"].items()
        for threads, rate in rates.items()
    )
    return [
        f"CPU: {machine['cpu'].get('brand_raw', 'unknown')}, {found['cores']} cores; {machine['system']}, "
        f"Python {machine['python_version']}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        f"threads: {found['threads']} for all contenders ({found['threading layer']}); BLAS: {found['BLAS']}",
        f"environment: {environment}",
        f"weights prepacked: {found['weights prepacked']}; times: {found['times']}",
        f"FMA peak of the micro-kernel: {peaks}; percentages are of the best of the same rounds",
        *_memory(found),
        "ratios: peer's time / fastconv's time, above 1 fastconv is faster",
    ]


def _memory(found: Mapping[str, Any]) -> list[str]:
    """What copying reads and writes in a second; files of older versions do not say."""
    rates = [
        f"{rate / 1e9:.0f} GB/s on {threads} thread{'s' if threads != '1' else ''}"
        for threads, rate in found.get("memory", {}).items()
    ]
    return [f"memory, copied: {', '.join(rates)}"] if rates else []


def summary(groups: Mapping[str, Sequence[Case]]) -> list[Row]:
    """The geometric means of all operations: header, and a row for each.

    >>> case = {"fastconv": 0.001, "peers": {"torch": 0.002}}
    >>> for row in summary({"forward": [case, {**case, "peers": {"torch": 0.008, "scipy": 0.1}}]}):
    ...     print(" | ".join(row))
    geometric means | layers | torch | scipy
    forward | 2 | 4.00 | 100 (1 of 2)
    """
    peers = peers_of(case for cases in groups.values() for case in cases)
    rows: list[Row] = [("geometric means", "layers", *peers)]
    for operation, cases in groups.items():
        rows.append((operation, str(len(cases)), *(mean_ratio(cases, peer) for peer in peers)))
    return rows


def report(results: Results, markdown: bool) -> str:
    """All tables, with their conditions."""
    bullet, heading = ("- ", "### ") if markdown else ("  ", "")
    groups = by_operation(read_cases(results))
    parts = [
        "\n".join(bullet + line for line in conditions(results["machine_info"])),
        aligned(summary(groups), markdown),
    ]
    for operation, cases in groups.items():
        parts += [heading + operation, aligned(table(cases), markdown)]
        absent = left_out(cases)
        if absent:
            parts.append("Not measured: " + "; ".join(absent) + ".")
    return "\n\n".join(parts)


def read_cases(results: Results) -> list[Case]:
    """The cases of this repository's benchmarks."""
    return [entry["extra_info"] for entry in results["benchmarks"] if "fastconv" in entry["extra_info"]]


def select(results: Results, operation: str, peers: Sequence[str]) -> Results:
    """The cases whose operation contains a text, with some of the peers only (none named: with all)."""
    chosen = []
    for case in read_cases(results):
        if operation not in case["operation"]:
            continue
        if peers:
            kept = {
                key: {name: value for name, value in case[key].items() if name in peers}
                for key in ("peers", "left_out")
            }
            case = {**case, **kept}
        chosen.append({"extra_info": case})
    return {**results, "benchmarks": chosen}


def plot_ratios(results: Results, file: Path) -> None:
    """Draw the ratios on a logarithmic scale: a panel per operation, a line per layer, a dot per peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    groups = by_operation(read_cases(results))
    names = peers_of(read_cases(results))
    columns = min(2, len(groups))
    # side by side those that need about as much height
    panels_by_rows = sorted(groups.items(), key=lambda group: -len(group[1]))
    heights = [0.8 + 0.22 * len(cases) for _, cases in panels_by_rows[::columns]]
    figure, panels = pyplot.subplots(
        len(heights),
        columns,
        figsize=(6.5 * columns, sum(heights) + 1),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for panel, (operation, cases) in zip(panels.flat, panels_by_rows, strict=False):
        lines = range(len(cases))
        for index, name in enumerate(names):
            found = [ratios(case).get(name, math.nan) for case in cases]
            # ten colours are told apart; the next ten contenders have them again with another mark
            mark = "o^sD"[index // 10 % 4]
            panel.plot(found, lines, mark, color=f"C{index % 10}", label=name, markersize=5)
        panel.axvline(1, color="black", linewidth=1)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(ticker.NullFormatter())
        panel.set_yticks(lines, [case["layer"] for case in cases])
        panel.invert_yaxis()
        panel.grid(alpha=0.3)
        panel.set_title(operation, loc="left", fontsize="medium")
    for panel in panels.flat[len(groups) :]:
        panel.set_visible(False)
    figure.supxlabel(
        "time of peer / time of fastconv: to the right of 1, fastconv is faster", fontsize="medium"
    )
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tables of ratios from pytest-benchmark's JSON.")
    parser.add_argument("results", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    parser.add_argument("--operation", default="", metavar="TEXT", help="only operations that contain this")
    parser.add_argument("--peer", nargs="+", default=[], metavar="NAME", help="only these peers")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the roofline (needs matplotlib)")
    parser.add_argument("--ratios", type=Path, metavar="FILE", help="also draw the ratios (needs matplotlib)")
    options = parser.parse_args(arguments)
    try:
        results = json.loads(options.results.read_text())
    except (OSError, json.JSONDecodeError) as error:
        parser.error(f"cannot read {options.results}: {error}")
    if "conditions" not in results.get("machine_info", {}) or not read_cases(results):
        parser.error(f"{options.results} is no result of this repository's benchmarks")
    results = select(results, options.operation, options.peer)
    if not read_cases(results):
        parser.error(f"no operation contains {options.operation!r}")
    print(report(results, options.markdown))
    if options.ratios:
        plot_ratios(results, options.ratios)
    if options.plot:
        from benchmarks import roofline  # which takes its cases from here

        try:
            roofline.plot(results, options.plot, options.peer)
        except ValueError as error:
            parser.error(f"--plot: {error}")


if __name__ == "__main__":
    main()
