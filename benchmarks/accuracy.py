"""How far results are from those in float64: largest and root mean square error, by algorithm and channels.

    python benchmarks/accuracy.py
    python benchmarks/accuracy.py --channels 64 512 --size 7 --op input_grad --dtype float64

Errors are relative to the standard deviation of the exact results, which are NumPy's in float64, or, where
float64 is what is looked at, in extended precision. 3 x 3 kernels, normally distributed numbers, weights
divided by the root of the products that a sum has. A weight gradient sums over images instead of channels:
so many there are. Winograd's tiles are 4 x 4 cells on a map of 28 x 28, and forward 2 x 2 on one of 7 x 7. A
contender that is not installed is named below the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it finds only its own folder

import fastconv
from benchmarks import numpy_ops, peers, race
from benchmarks.layers import ConvLayer, conv_data
from benchmarks.table import NOT_MEASURED, Row, aligned

CHANNELS = (16, 64, 128, 256, 512)
SIZES = (28, 7)
OPERATIONS = ("forward", "input_grad", "weight_grad")
#: Output channels, and of weight gradients input channels: they have no influence on errors.
FILTERS = 32


def layer_of(op: str, channels: int, size: int) -> ConvLayer:
    """A layer with sums over `channels` input channels; by `op` those are the filters, or the images."""
    if op == "weight_grad":
        return ConvLayer(f"{channels} images", "accuracy", channels, FILTERS, size, FILTERS, 3, padding=1)
    ends = (FILTERS, channels) if op == "input_grad" else (channels, FILTERS)
    return ConvLayer(f"{channels} channels", "accuracy", 1, ends[0], size, ends[1], 3, padding=1)


def errors(op: str, layer: ConvLayer, dtype: Any) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """For each contender its largest and root mean square error, and for each other why there is none."""
    data = conv_data(layer, dtype)
    exact = np.longdouble if dtype == np.float64 else np.float64
    expected = numpy_ops.conv(op, layer, data.astype(exact))
    found, left_out = peers.conv_line_up(op, layer, data, ["torch"])
    result = {}
    for name, contender in found.items():
        if name == "torch channels_last":  # the same numbers in another order
            continue
        with contender.context():
            (got,) = race.as_arrays(contender.logical(contender.call()))
        error = got.astype(exact) - expected
        error /= np.std(expected)
        result[name] = float(abs(error).max()), float(np.sqrt(np.square(error).mean()))
    return result, left_out


def label(name: str, op: str, layer: ConvLayer, dtype: Any) -> str:
    """A contender's name; what fastconv itself chooses, by its algorithm.

    >>> label("fastconv", "forward", layer_of("forward", 1, 28), np.float32)
    'depthwise'
    >>> label("fastconv im2col", "forward", layer_of("forward", 1, 28), np.float32)
    'im2col'
    """
    if name == "fastconv":
        return peers.chosen_conv(op, layer, dtype)
    return name.removeprefix("fastconv ")


def rows(table: dict[int, dict[str, tuple[float, float]]]) -> list[Row]:
    """Header, and a row for each contender with both errors for each number of channels.

    >>> for row in rows({16: {"gemm": (3e-7, 1e-7)}, 64: {"gemm": (6e-7, 2e-7), "torch": (5e-7, 1e-7)}}):
    ...     print(" | ".join(row))
    contender | 16: max | rms | 64: max | rms
    gemm | 3.0e-07 | 1.0e-07 | 6.0e-07 | 2.0e-07
    torch | - | - | 5.0e-07 | 1.0e-07
    """
    header = ["contender"]
    for channels in table:
        header += [f"{channels}: max", "rms"]
    names = dict.fromkeys(name for column in table.values() for name in column)
    result: list[Row] = [header]
    for name in names:
        cells = [name]
        for column in table.values():
            cells += [f"{error:.1e}" for error in column[name]] if name in column else [NOT_MEASURED] * 2
        result.append(cells)
    return result


def report(op: str, size: int, channels: Iterable[int], dtype: Any, markdown: bool = False) -> str:
    """A table, and who is missing from it."""
    table, missing = {}, {}
    for count in channels:
        layer = layer_of(op, count, size)
        found, left_out = errors(op, layer, dtype)
        table[count] = {label(name, op, layer, dtype): pair for name, pair in found.items()}
        missing |= {name: reason for name, reason in left_out.items() if reason != peers.CHOSEN}
    by = "images" if op == "weight_grad" else "input channels"
    lines = [f"\n{op}, {np.dtype(dtype)}, map of {size} x {size}, by {by}\n"]
    lines.append(aligned(rows(table), markdown))
    lines += [f"not measured: {label(name, op, layer, dtype)}: {reason}" for name, reason in missing.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Errors against float64, by algorithm and channels.")
    parser.add_argument("--channels", nargs="+", type=int, default=CHANNELS, metavar="N")
    parser.add_argument("--size", nargs="+", type=int, default=SIZES, metavar="N")
    parser.add_argument("--op", nargs="+", default=["forward"], choices=list(OPERATIONS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)
    print(f"fastconv {fastconv.__version__}; errors relative to the standard deviation of the results")
    for op in options.op:
        for size in options.size:
            print(report(op, size, options.channels, np.dtype(options.dtype), options.markdown))


if __name__ == "__main__":
    main()
