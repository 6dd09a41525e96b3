"""From seven loops to the speed of a vendor's library: one convolution, in each of the ways on the road.

    python benchmarks/steps.py
    python benchmarks/steps.py --layer r50_4_3x3 --markdown

The functions between the marks are what the page "How a NumPy array is convolved at the speed of oneDNN"
shows, so what a reader sees there is what ran here. Each result is compared with float64 NumPy before
anything is timed. The first table is of whole convolutions, the second of the multiply-adds that a register
tile gets out of one core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.lib.stride_tricks import sliding_window_view

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it finds only its own folder

import fastconv
from benchmarks import conditions, numpy_ops, race, torch_peer, yardsticks
from benchmarks.contenders import Contender, LeftOut
from benchmarks.layers import CONV_LAYERS, ConvData, ConvLayer, conv_data
from benchmarks.table import Row, aligned, number, percent
from fastconv.jit import DISABLED
from fastconv.kernels.simd import HAS_FMA, LANES, Vector, splat_value
from fastconv.kernels.winograd_points import float_matrices

#: Calls of those that take a tenth of a second and more.
SLOW_ROUNDS = 3


# --8<-- [start:loops]
def loops(x, weight):
    """The definition, for an x that has its border of zeros already."""
    images, channels, height, width = x.shape
    filters, _, r_size, s_size = weight.shape
    y = np.zeros((images, filters, height - r_size + 1, width - s_size + 1), x.dtype)
    for n in range(images):
        for k in range(filters):
            for i in range(y.shape[2]):
                for j in range(y.shape[3]):
                    total = 0.0
                    for c in range(channels):
                        for r in range(r_size):
                            for s in range(s_size):
                                total += x[n, c, i + r, j + s] * weight[k, c, r, s]
                    y[n, k, i, j] = total
    return y


# --8<-- [end:loops]


# --8<-- [start:windows]
def windows(x, weight):
    """One NumPy call per place: its window with all filters at once."""
    images, _, height, width = x.shape
    filters, _, r_size, s_size = weight.shape
    y = np.empty((images, filters, height - r_size + 1, width - s_size + 1), x.dtype)
    for n in range(images):
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                window = x[n, :, i : i + r_size, j : j + s_size]
                y[n, :, i, j] = np.tensordot(weight, window, 3)  # (K, CRS) x (CRS,)
    return y


# --8<-- [end:windows]


# --8<-- [start:im2col]
def im2col(x, weight):
    """Every window becomes a column; then it is one product of matrices."""
    filters, _, r_size, s_size = weight.shape
    cells = sliding_window_view(x, (r_size, s_size), axis=(2, 3))  # (N, C, P, Q, R, S): a view, no copy yet
    images, _, rows, columns = cells.shape[:4]
    columns_of_x = cells.transpose(1, 4, 5, 0, 2, 3).reshape(weight[0].size, -1)  # (CRS, NPQ): the copy
    y = weight.reshape(filters, -1) @ columns_of_x  # (K, CRS) x (CRS, NPQ)
    return y.reshape(filters, images, rows, columns).swapaxes(0, 1)


# --8<-- [end:im2col]


# --8<-- [start:winograd]
A, G, B = (np.array(matrix, np.float32) for matrix in float_matrices(4))  # (4, 6), (6, 3), (6, 6)
A, G, B = (np.kron(matrix, matrix) for matrix in (A, G, B))  # along both axes at once


def winograd(x, weight):
    """F(4 x 4, 3 x 3): 36 products for 16 outputs, of which the definition needs 144."""
    filters, channels = weight.shape[:2]
    tiles = sliding_window_view(x, (6, 6), axis=(2, 3))[:, :, ::4, ::4]  # (N, C, P / 4, Q / 4, 6, 6)
    images, _, rows, columns = tiles.shape[:4]
    d = tiles.transpose(4, 5, 1, 0, 2, 3).reshape(36, -1)
    g = weight.transpose(2, 3, 0, 1).reshape(9, -1)
    v = (B @ d).reshape(36, channels, -1)
    u = (G @ g).reshape(36, filters, channels)
    m = u @ v  # 36 times (K, C) x (C, tiles): where nearly all the work is
    y = (A @ m.reshape(36, -1)).reshape(4, 4, filters, images, rows, columns)
    return y.transpose(3, 2, 4, 0, 5, 1).reshape(images, filters, 4 * rows, 4 * columns)


# --8<-- [end:winograd]


# --8<-- [start:tile]
def make_tile(rows, vectors):
    """A kernel that adds A panel x B panel up in `rows` x `vectors` registers."""
    like = Vector("real", 32)  # as many float32 as a register of this CPU holds

    @intrinsic
    def multiply(typingctx, a, b, c, depth):
        def codegen(context, builder, signature, args):
            a, b, c, depth = args
            a = builder.inttoptr(a, like.element.as_pointer())
            b, c = (builder.inttoptr(address, like.llvm.as_pointer()) for address in (b, c))
            name = f"llvm.{'fma' if HAS_FMA else 'fmuladd'}.v{like.lanes}f32"
            kind = ir.FunctionType(like.llvm, [like.llvm] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, name)

            def cell(panel, row, width, column):
                """The address of a cell of a panel whose rows have `width` cells."""
                first = builder.mul(row, ir.Constant(row.type, width))
                return builder.gep(panel, [builder.add(first, ir.Constant(row.type, column))])

            zero = ir.Constant(like.llvm, None)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(vectors)] for _ in range(rows)]
            with cgutils.for_range(builder, depth) as loop:
                b_row = [builder.load(cell(b, loop.index, vectors, j), align=4) for j in range(vectors)]
                for i in range(rows):
                    real = builder.load(cell(a, loop.index, rows, i))
                    a_everywhere = splat_value(builder, real, like)
                    for j in range(vectors):
                        total = builder.load(sums[i][j])
                        builder.store(builder.call(fma, [a_everywhere, b_row[j], total]), sums[i][j])
            for i in range(rows):
                for j in range(vectors):
                    place = cell(c, ir.Constant(depth.type, i), vectors, j)
                    builder.store(builder.load(sums[i][j]), place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    @numba.njit
    def tile(a, b, c, depth, times):
        for _ in range(times):
            multiply(a, b, c, depth)

    return tile


# --8<-- [end:tile]


class Step(NamedTuple):
    """One way, its threads, and how long it takes; one that takes long is timed on part of the layer."""

    name: str
    seconds: float
    threads: int
    note: str = ""


def padded(layer: ConvLayer, data: ConvData) -> np.ndarray:
    """x with its border of zeros."""
    border = (layer.padding, layer.padding)
    return np.pad(data.x, ((0, 0), (0, 0), border, border))


def fits(layer: ConvLayer) -> bool:
    """Whether all steps can do it: one group, 3 x 3 cells in steps of 1, whole tiles of 4 x 4 outputs."""
    return (layer.groups, layer.kernel, layer.stride, layer.y_shape[2] % 4) == (1, 3, 1, 0)


def checked(name: str, call: Callable[[], np.ndarray], expected: np.ndarray) -> Callable[[], np.ndarray]:
    """The call itself, after a first one whose result is right; that one may compile."""
    race.check(name, call(), expected, np.float32)
    return call


def once(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def slow_steps(layer: ConvLayer, data: ConvData, expected: np.ndarray) -> list[Step]:
    """Those that would spoil a round for the others: medians of a few calls."""
    x, weight = padded(layer, data), data.weight
    planes = layer.batch * layer.out_channels
    compiled = numba.njit(loops)
    steps = []
    for name, call, want, threads, parts in (
        ("loops in Python", lambda: loops(x[:1], weight[:1]), expected[:1, :1], 1, planes),
        ("the same, compiled by Numba", lambda: compiled(x, weight), expected, 1, 1),
        ("NumPy for each window", lambda: windows(x, weight), expected, fastconv.get_num_threads(), 1),
    ):
        call = checked(name, call, want)
        seconds = statistics.median(once(call) for _ in range(SLOW_ROUNDS))
        note = f"one of {parts} planes, times {parts}" if parts > 1 else ""
        steps.append(Step(name, seconds * parts, threads, note))
    return steps


def fast_steps(layer: ConvLayer, data: ConvData, expected: np.ndarray, seconds: float) -> list[Step]:
    """The others, interleaved, with fastconv's peak of multiply-adds and PyTorch beside them."""
    border, weight, bias = padded(layer, data), data.weight, np.zeros(layer.out_channels, np.float32)
    x, facts = data.x, (layer.stride, layer.padding)

    def by(algorithm: str) -> Callable[[], np.ndarray]:
        return lambda: fastconv.conv2d(x, weight, None, *facts, algorithm=algorithm)

    packed = fastconv.prepack(weight, x_shape=x.shape, padding=layer.padding, algorithm="winograd")
    ways = {
        "im2col in NumPy, BLAS": lambda: im2col(border, weight),
        "im2col in blocks, BLAS": by("im2col"),
        "implicit GEMM, micro-kernel": by("gemm"),
        "Winograd in NumPy, BLAS": lambda: winograd(border, weight),
        "Winograd, micro-kernel": by("winograd"),
        "the same, filters transformed before": lambda: fastconv.conv2d(x, packed, None, *facts),
    }
    contenders = {name: Contender(checked(name, call, expected)) for name, call in ways.items()}
    try:
        contender = torch_peer.conv("forward", layer, data._replace(bias=bias), "contiguous_format")
    except LeftOut:
        pass
    else:
        with contender.context():
            race.check("PyTorch", contender.call(), expected, np.float32)
        contenders["PyTorch (oneDNN)"] = contender
    rounds = race.Rounds(contenders, seconds, 5)
    for _ in range(rounds.rounds):
        rounds.run_one()
    return [Step(name, time_, fastconv.get_num_threads()) for name, time_ in rounds.medians().items()]


def step_rows(layer: ConvLayer, steps: Sequence[Step], peak: float) -> list[Row]:
    """Header, and a row for each step with its rate, its part of the peak and its gain on the first.

    >>> layer = ConvLayer("conv", "net", 1, 1, 12, 1, 3)
    >>> for row in step_rows(layer, [Step("slow", 0.5, 1, "a guess"), Step("fast", 1e-6, 2)], 2e10):
    ...     print(" | ".join(row))
    contender | threads | ms | GFLOP/s | of the peak | times as fast as the first
    slow (a guess) | 1 | 500 | 0.00000360 | 0 % | 1
    fast | 2 | 0.00100 | 1.80 | 9 % | 500,000
    """
    header = ("contender", "threads", "ms", "GFLOP/s", "of the peak", "times as fast as the first")
    rows: list[Row] = [header]
    for step in steps:
        rate = layer.flops / step.seconds
        name = f"{step.name} ({step.note})" if step.note else step.name
        gain = f"{steps[0].seconds / step.seconds:,.0f}"
        cells = (
            str(step.threads),
            number(1e3 * step.seconds),
            number(rate / 1e9),
            percent(rate / peak),
            gain,
        )
        rows.append((name, *cells))
    return rows


#: Rows and vectors of the tiles in the second table.
TILES = ((1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (8, 2), (8, 3), (12, 3))
DEPTH = 256
PRODUCTS = 2000


def tile_rate(rows: int, vectors: int, products: int = PRODUCTS) -> float:
    """Floating-point operations a second of one core with panels that stay in its L1 cache."""
    rng = np.random.default_rng(0)
    lanes = LANES[32]
    a = rng.standard_normal((DEPTH, rows), np.float32)
    b = rng.standard_normal((DEPTH, vectors * lanes), np.float32)
    c = np.zeros((rows, vectors * lanes), np.float32)
    tile = make_tile(rows, vectors)
    arguments = (a.ctypes.data, b.ctypes.data, c.ctypes.data, DEPTH)
    tile(*arguments, 1)
    race.check(f"tile of {rows} x {vectors}", c, a.T.astype(np.float64) @ b, np.float32)
    seconds = statistics.median(once(lambda: tile(*arguments, products)) for _ in range(20))
    return 2 * rows * vectors * lanes * DEPTH * products / seconds


def tile_rows(rates: Sequence[tuple[int, int, float]]) -> list[Row]:
    """Header, and a row for each tile.

    >>> for row in tile_rows([(8, 3, 1.1e11)]):
    ...     print(" | ".join(row))
    rows x vectors | sums in registers | loads for a multiply-add | GFLOP/s
    8 x 3 | 24 | 0.46 | 110
    """
    result: list[Row] = [("rows x vectors", "sums in registers", "loads for a multiply-add", "GFLOP/s")]
    for rows, vectors, rate in rates:
        loads = (rows + vectors) / (rows * vectors)
        result.append((f"{rows} x {vectors}", str(rows * vectors), f"{loads:.2f}", number(rate / 1e9)))
    return result


def report(layer: ConvLayer, seconds: float, markdown: bool) -> str:
    """Both tables, and what they were measured with."""
    data = conv_data(layer)
    no_bias = data._replace(bias=np.zeros_like(data.bias))
    expected = numpy_ops.forward(layer, no_bias.astype(np.float64))
    with conditions.same_threads():
        steps = slow_steps(layer, data, expected) + fast_steps(layer, data, expected, seconds)
        threads = fastconv.get_num_threads()
        peak = yardsticks.measured_peaks()["float32"][str(threads)]
    lines = [f"{layer.name}: {layer}, {layer.flops:,} flops, float32, {threads} threads"]
    lines.append(f"Peak of the micro-kernel: {number(peak / 1e9)} GFLOP/s.")
    lines.append(aligned(step_rows(layer, steps, peak), markdown))
    lines.append("The multiply-adds of a tile, one core:")
    lines.append(aligned(tile_rows([(*tile, tile_rate(*tile)) for tile in TILES]), markdown))
    return "\n\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    layers = {layer.name: layer for layer in CONV_LAYERS if fits(layer)}
    parser.add_argument(
        "--layer", choices=layers, default="r50_3_3x3", metavar="NAME", help=", ".join(layers)
    )
    parser.add_argument("--seconds", type=float, default=10, help="for the fast ways together, about")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)
    if DISABLED:
        parser.error("the steps need the compiler, which NUMBA_DISABLE_JIT turns off")
    for missing in conditions.missing_settings():
        print(f"not set: {missing}")
    print(report(layers[options.layer], options.seconds, options.markdown))


if __name__ == "__main__":
    main()
