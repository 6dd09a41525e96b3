"""Is what "auto" chooses the fastest? Every algorithm on every layer, interleaved.

    python benchmarks/choice.py
    python benchmarks/choice.py --op input_grad weight_grad --layer mnist1 r50_3_3x3 --dtype float64

A line has the milliseconds of each algorithm that can do a layer, which one "auto" takes, and how many times
as long that takes as the best one; a star marks those that take a tenth longer. From such tables come the
conditions in the algorithms' `drawback`, so this tells whether they still hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it finds only its own folder

import fastconv
from benchmarks import conditions, peers, race
from benchmarks.contenders import Contender, LeftOut
from benchmarks.layers import CONV_LAYERS, ConvLayer, conv_data
from benchmarks.table import NOT_MEASURED, Row, aligned, number

#: The operations that an algorithm is chosen for.
OPERATIONS = ("forward", "input_grad", "weight_grad")
#: The chosen algorithm may take this many times as long as the best.
TOLERANCE = 1.1


def contenders(op: str, layer: ConvLayer, dtype: Any) -> dict[str, Contender]:
    """Each algorithm that can do it, but the reference, which is never fast."""
    data = conv_data(layer, dtype)
    chosen = peers.chosen_conv(op, layer, dtype)
    found = {chosen: peers.fastconv_conv(op, layer, data, "auto")}
    for name in fastconv.ALGORITHMS.keys() - {"auto", "naive", chosen}:
        try:
            found[name] = peers.fastconv_conv(op, layer, data, name)
        except LeftOut:
            continue
    return found


def seconds(op: str, layer: ConvLayer, dtype: Any, budget: float) -> tuple[str, dict[str, float]]:
    """The name of the chosen algorithm, and the median time of each."""
    found = contenders(op, layer, dtype)
    for contender in found.values():
        contender.call()  # compiles
    rounds = race.Rounds(found, budget, 5)
    for _ in range(rounds.rounds):
        rounds.run_one()
    return next(iter(found)), rounds.medians()


def row(layer: ConvLayer, chosen: str, times: dict[str, float], names: Sequence[str]) -> Row:
    """A line of the table."""
    excess = times[chosen] / min(times.values())
    cells = [number(1e3 * times[name]) if name in times else NOT_MEASURED for name in names]
    return [layer.name, *cells, chosen, f"{excess:.2f}" + ("*" if excess > TOLERANCE else "")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--op", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--layer", nargs="+", choices=[layer.name for layer in CONV_LAYERS])
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each layer and operation, about")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)
    layers = [layer for layer in CONV_LAYERS if options.layer is None or layer.name in options.layer]
    names = [name for name in fastconv.ALGORITHMS if name not in ("auto", "naive")]
    for missing in conditions.missing_settings():
        print(f"not set: {missing}")
    for op in options.op:
        print(f"\n{op}, {options.dtype}, {fastconv.get_num_threads()} threads, milliseconds")
        title: Row = ["layer", *names, "auto", "of the best"]
        dtype = np.dtype(options.dtype)
        rows = [row(layer, *seconds(op, layer, dtype, options.seconds), names) for layer in layers]
        print(aligned([title, *rows], options.markdown), flush=True)


if __name__ == "__main__":
    main()
