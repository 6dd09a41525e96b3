"""How times fall with the number of threads: 1, 2, 4, .. up to all that Numba started with.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --layer r50_3_3x3 vgg1_2 --op forward weight_grad --threads 1 2 8 16 --torch

All numbers of threads run interleaved in one process, as do contenders elsewhere (`benchmarks.race`), each
with as many BLAS threads. The efficiency is the speed-up divided by the threads; the last lines of a table
are what the cores themselves can do: the peak of multiply-adds, which falls short where cores share a clock
or are two threads of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it finds only its own folder

import fastconv
from benchmarks import conditions, numpy_ops, peers, race
from benchmarks.contenders import Contender, LeftOut
from benchmarks.layers import CONV_LAYERS, CONV_OPERATIONS, ConvLayer, conv_data
from benchmarks.table import Row, aligned, number, percent
from benchmarks.torch_peer import load_torch
from benchmarks.yardsticks import peak

#: Large and small maps, many and few channels, one without reuse, and one for whose size threads hardly pay.
LAYERS = ("vgg1_2", "r50_3_3x3", "r50_5_3x3", "r50_2_1x1", "mobile_dw3x3", "mnist2")


def counts_up_to(most: int) -> list[int]:
    """Powers of two, and `most`.

    >>> counts_up_to(6), counts_up_to(8)
    ([1, 2, 4, 6], [1, 2, 4, 8])
    """
    return sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})


@contextlib.contextmanager
def fastconv_threads(count: int) -> Iterator[None]:
    with fastconv.num_threads(count), conditions.same_threads():
        yield


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    torch = load_torch()
    torch.set_num_threads(count)
    with torch.inference_mode():
        yield


def contenders(op: str, layer: ConvLayer, threads: Sequence[int], with_torch: bool) -> dict[str, Contender]:
    """By name and number of threads, such as "torch 4"; "peak" is the micro-kernel alone."""
    data = conv_data(layer)
    names = ["torch"] if with_torch else []
    # which algorithm is fastest does not depend on the threads
    found = peers.conv_line_up(op, layer, data, names).contenders
    contexts = {"fastconv": fastconv_threads, "torch": torch_threads}
    expected = numpy_ops.conv(op, layer, data.astype(np.float64))
    result = {}
    for name in ("fastconv", *names):
        for count in threads:
            contender = found[name]._replace(context=partial(contexts[name], count))
            with contender.context():
                race.check(f"{name} on {count} threads", contender.call(), expected, np.float32)
            result[f"{name} {count}"] = contender
    for count in threads:
        result[f"peak {count}"] = Contender(peak(np.float32, count).call, partial(fastconv_threads, count))
    return result


def rows(times: dict[str, float], layer: ConvLayer, threads: Sequence[int]) -> list[Row]:
    """Header, and a row for each contender and number of threads.

    >>> layer = ConvLayer("conv1", "some", 1, 1, 10, 10, 1)
    >>> times = {"fastconv 1": 2e-6, "fastconv 2": 1.25e-6, "peak 1": 1e-3, "peak 2": 1e-3}
    >>> for row in rows(times, layer, [1, 2]):
    ...     print(" | ".join(row))  # doctest: +ELLIPSIS
    contender | threads | ms | speed-up | efficiency | GFLOP/s | of FMA peak
    fastconv | 1 | 0.00200 | 1.00 | 100 % | 1.00 | ...
    fastconv | 2 | 0.00125 | 1.60 | 80 % | 1.60 | ...
    FMA peak | 1 |  | 1.00 | 100 % | ... |
    FMA peak | 2 |  | 2.00 | 100 % | ... |
    """
    peaks = {count: peak(np.float32, count).flops / times[f"peak {count}"] for count in threads}
    table: list[Row] = [("contender", "threads", "ms", "speed-up", "efficiency", "GFLOP/s", "of FMA peak")]
    for key, seconds in times.items():
        name, count = key.split()[0], int(key.split()[1])
        if name == "peak":
            continue
        speed_up = times[f"{name} {threads[0]}"] / seconds
        rate = layer.flops / seconds
        cells = (number(speed_up), percent(speed_up * threads[0] / count), number(rate / 1e9))
        table.append((name, str(count), number(seconds * 1e3), *cells, percent(rate / peaks[count])))
    for count, rate in peaks.items():
        speed_up = rate / peaks[threads[0]]
        cells = (number(speed_up), percent(speed_up * threads[0] / count), number(rate / 1e9))
        table.append(("FMA peak", str(count), "", *cells, ""))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    most = fastconv.get_num_threads()
    layers = {layer.name: layer for layer in CONV_LAYERS}
    parser = argparse.ArgumentParser(description="How times fall with the number of threads.")
    parser.add_argument("--layer", nargs="+", default=LAYERS, choices=layers, metavar="NAME")
    parser.add_argument("--op", nargs="+", default=["forward"], choices=CONV_OPERATIONS, metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=counts_up_to(most), metavar="N")
    parser.add_argument("--torch", action="store_true", help="torch as well")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each table, about (default: 1)")
    options = parser.parse_args(arguments)
    threads = sorted(set(options.threads))
    if threads[0] < 1 or threads[-1] > most:
        parser.error(f"--threads must be from 1 to {most}")
    if options.torch:
        try:
            load_torch()
        except LeftOut as reason:
            parser.error(f"torch is {reason}")
    missing = conditions.missing_settings()
    if missing:
        print("for a fair comparison start with " + " ".join(missing))
    for op in options.op:
        for name in options.layer:
            layer = layers[name]
            rounds = race.Rounds(contenders(op, layer, threads, options.torch), options.seconds, least=5)
            for _ in range(rounds.rounds):
                rounds.run_one()
            algorithm = peers.chosen_conv(op, layer, np.float32)
            print(f"\n{name}, {layer}, {op}, float32, {algorithm}; medians of {rounds.rounds} rounds\n")
            print(aligned(rows(rounds.medians(), layer, threads), markdown=False))


if __name__ == "__main__":
    main()
