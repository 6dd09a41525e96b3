"""``python -m fastconv onnx MODEL.onnx``: run a model, and see which nodes take how long.

The model runs by the plain reference evaluator and by fastconv's operators; the table has both times of each
kind of node, with ``--nodes`` of each node, and below it how far the results are apart. Inputs that are not
given are random, drawn with a fixed seed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from fastconv.onnx import OPS


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = "Run an ONNX model by fastconv, and print the time of each kind of node."
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument(
        "--input",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]X.npy",
        help="arrays for the inputs, in the model's order or by name; the others are random",
    )
    parser.add_argument(
        "--runs", type=int, default=3, metavar="N", help="runs, of which the fastest counts (default: 3)"
    )
    parser.add_argument("--nodes", action="store_true", help="a line for each node, too")
    parser.add_argument(
        "--no-plain", action="store_true", help="fastconv alone: the plain evaluator may take minutes"
    )
    parser.add_argument(
        "--save", type=Path, metavar="Y.npz", help="write the results to a file, by their names"
    )


def run(arguments: argparse.Namespace, prog: str) -> int:
    """Run the command; the result is the exit code, 2 for what cannot be done."""
    try:
        if arguments.runs < 1:
            raise ValueError(f"--runs must be at least 1, got {arguments.runs}")
        model = onnx.load(arguments.model)
        feeds = inputs(model, arguments.input)
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except (
        Exception
    ) as error:  # protobuf's own, of a file that is no model; what it is called depends on its version
        if "DecodeError" not in type(error).__name__:
            raise
        print(f"{prog}: error: {arguments.model} is no ONNX model: {error}", file=sys.stderr)
        return 2
    mine = timed(ReferenceEvaluator(model, new_ops=OPS), feeds, arguments.runs)
    plain = None if arguments.no_plain else timed(ReferenceEvaluator(model), feeds, arguments.runs)
    print("\n".join(report(mine, plain, arguments.nodes)))
    if arguments.save:
        np.savez(arguments.save, **dict(mine.results))  # type: ignore[arg-type]
    return 0


# --- inputs -----------------------------------------------------------------------------------------


def inputs(model: Any, files: Iterable[str], seed: int = 0) -> dict[str, np.ndarray]:
    """An array for each input that the model does not bring itself."""
    given = {item.name for item in model.graph.initializer}
    wanted = {item.name: item for item in model.graph.input if item.name not in given}
    feeds: dict[str, np.ndarray] = {}
    for file in files:
        name, has_name, path = file.rpartition("=")
        if not has_name:
            left = [name for name in wanted if name not in feeds]
            if not left:
                raise ValueError(
                    f"{file}: the model has no more than {len(wanted)} inputs: {', '.join(wanted)}"
                )
            name = left[0]
        if name not in wanted:
            raise ValueError(f"{file}: the model has no input {name!r}, but {', '.join(wanted)}")
        feeds[name] = np.load(path, allow_pickle=False)
    rng = np.random.default_rng(seed)
    return feeds | {name: random_input(item, rng) for name, item in wanted.items() if name not in feeds}


def random_input(item: Any, rng: np.random.Generator) -> np.ndarray:
    """Numbers of an input's dtype and shape, 1 where the model leaves a size open."""
    kind = item.type.tensor_type
    if not item.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise ValueError(f"input {item.name!r} has no shape: give it with --input {item.name}=X.npy")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = [size.dim_value or 1 for size in kind.shape.dim]
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    raise ValueError(f"input {item.name!r} is {dtype}: give it with --input {item.name}=X.npy")


# --- running ----------------------------------------------------------------------------------------


class Times(NamedTuple):
    """Of the fastest run: seconds of each node in order, and in all; and the results by name."""

    nodes: list[tuple[str, str, float]]  # kind, name, seconds
    total: float
    results: list[tuple[str, np.ndarray]]


def timed(evaluator: ReferenceEvaluator, feeds: dict[str, np.ndarray], runs: int) -> Times:
    """Run a model, once for nothing and then `runs` times, with a clock at every node."""
    seconds = [0.0] * len(evaluator.rt_nodes_)
    for place, node in enumerate(evaluator.rt_nodes_):
        node.run = _clocked(node.run, seconds, place)
    evaluator.run(None, feeds)
    best: Times | None = None
    for _ in range(runs):
        start = time.perf_counter()
        results: Any = evaluator.run(None, feeds)
        total = time.perf_counter() - start
        if best is None or total < best.total:
            names = [(node.op_type, node.onnx_node.name or node.output[0]) for node in evaluator.rt_nodes_]
            nodes = [(*name, part) for name, part in zip(names, seconds, strict=True)]
            best = Times(nodes, total, list(zip(evaluator.output_names, results, strict=True)))
    assert best is not None
    return best


def _clocked(function: Any, seconds: list[float], place: int) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        results = function(*args, **kwargs)
        seconds[place] = time.perf_counter() - start
        return results

    return run


# --- the table --------------------------------------------------------------------------------------


def report(mine: Times, plain: Times | None, each_node: bool) -> list[str]:
    """The lines to print."""
    rows = [["node", "fastconv ms", *(["plain ms", "plain / fastconv"] if plain else [])]]
    if each_node:
        for place, (kind, name, seconds) in enumerate(mine.nodes):
            rows.append(_row(f"{kind} {name}", seconds, plain.nodes[place][2] if plain else None))
    own = {operator.__name__ for operator in OPS}
    sums = _by_kind(mine)
    others = _by_kind(plain) if plain else {}
    for kind in sorted(sums, key=lambda kind: -sums[kind][1]):
        count, seconds = sums[kind]
        label = f"{count} {kind}" + ("" if kind in own else " (the evaluator's)")
        rows.append(_row(label, seconds, others[kind][1] if plain else None))
    rows.append(_row("all", mine.total, plain.total if plain else None))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    if plain:
        pairs = zip(mine.results, plain.results, strict=True)
        lines += [_agreement(name, one, other) for (name, one), (_, other) in pairs]
    return lines


def _by_kind(times: Times) -> dict[str, tuple[int, float]]:
    sums: dict[str, tuple[int, float]] = {}
    for kind, _, seconds in times.nodes:
        count, before = sums.get(kind, (0, 0.0))
        sums[kind] = count + 1, before + seconds
    return sums


def _row(label: str, seconds: float, plain: float | None) -> list[str]:
    """
    >>> _row("3 Conv", 0.0125, 0.1)
    ['3 Conv', '12.50', '100.00', '8.0']
    """
    row = [label, f"{seconds * 1e3:.2f}"]
    return row if plain is None else [*row, f"{plain * 1e3:.2f}", f"{plain / seconds:.1f}"]


def _agreement(name: str, mine: Any, plain: Any) -> str:
    """
    >>> _agreement("y", np.array([1.0, 2]), np.array([1.0, 2.5]))
    "y (2,) float64: differs from the plain evaluator's by 0.5 at most, which has up to 2.5"
    """
    if not isinstance(mine, np.ndarray) or mine.dtype.kind not in "fiu":
        return f"{name}: not compared"
    facts = f"{name} {mine.shape} {mine.dtype}: "
    if mine.shape != plain.shape:
        return facts + f"the plain evaluator's has shape {plain.shape}"
    if mine.dtype == plain.dtype and np.array_equal(mine, plain, equal_nan=mine.dtype.kind == "f"):
        return facts + "equal to the plain evaluator's"
    gap = np.abs(mine.astype(np.float64) - plain)
    apart = f"by {gap.max():.3g} at most, which has up to {abs(plain).max():.3g}"
    return f"{facts}differs from the plain evaluator's {apart}"
