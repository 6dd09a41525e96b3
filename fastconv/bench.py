"""``fastconv bench``: a few layers against whatever else is installed, in a minute.

The benchmarks of the repository measure more layers, gradients and conditions. This is for a first answer to
"and on my machine?": one process, interleaved rounds, medians, every result checked before it is timed.
"""

from __future__ import annotations

import argparse
import importlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastconv import functional as F
from fastconv.threads import get_num_threads, num_threads
from fastconv.warmup import show_config

Call = Callable[[], Any]

#: Seconds that a contender waits before its turn, in which the threads of the one before go to sleep.
PAUSE = 0.01
#: Seconds that a turn takes at least.
TURN = 0.01
#: SciPy takes 40 ns for each multiply-add: more of them would be a wait.
SCIPY_FLOPS = 20e6
#: Largest error that counts as rounding, relative to the root mean square of the result.
TOLERANCE = 1e-4
#: A version of ONNX that every ONNX Runtime of the last years reads.
OPSET, IR_VERSION = 17, 8


class Layer(NamedTuple):
    """A layer of a well-known network; without filters it is a max pooling."""

    name: str
    x_shape: tuple[int, int, int, int]
    filters: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each cell of a kernel; a pooling compares."""
        n, c, h, w = self.x_shape
        rows, columns = ((size + 2 * self.padding - self.kernel) // self.stride + 1 for size in (h, w))
        cells = n * rows * columns * self.kernel**2
        return cells * (2 * self.filters * c // self.groups if self.filters else c)

    def __str__(self) -> str:
        size = f"{self.kernel}x{self.kernel}"
        step = f", stride {self.stride}" if self.stride > 1 else ""
        shape = "x".join(map(str, self.x_shape))
        if not self.filters:
            return f"{shape}, max pool {size}{step}"
        kind = f"depthwise {size}" if self.groups > 1 else f"{self.filters} filters {size}"
        return f"{shape}, {kind}{step}"


LAYERS = (
    Layer("LeNet, first", (32, 1, 28, 28), 6, 5, padding=2),
    Layer("ResNet-50, 3x3", (4, 128, 28, 28), 128, 3, padding=1),
    Layer("ResNet-50, 1x1", (4, 256, 14, 14), 1024, 1),
    Layer("VGG-16, 3x3", (1, 256, 56, 56), 256, 3, padding=1),
    Layer("MobileNet, depthwise", (4, 128, 56, 56), 128, 3, padding=1, groups=128),
    Layer("VGG-16, pooling", (1, 64, 224, 224), 0, 2, stride=2),
)


class Absent(Exception):
    """Why a contender does not take part in a layer."""


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Absent("not installed") from None


def _windows(layer: Layer, x: np.ndarray, fill: float) -> np.ndarray:
    """A view (N, C, P, Q, R, S) of x with its padding."""
    edge = (layer.padding, layer.padding)
    padded = np.pad(x, ((0, 0), (0, 0), edge, edge), constant_values=fill)
    kernel = (layer.kernel, layer.kernel)
    return sliding_window_view(padded, kernel, axis=(2, 3))[:, :, :: layer.stride, :: layer.stride]


def _numpy(layer: Layer, x: np.ndarray, weight: np.ndarray) -> Call:
    """im2col and BLAS; depthwise there is no product of matrices in it."""
    if not layer.filters:
        return lambda: _windows(layer, x, -np.inf).max((4, 5))
    if layer.groups > 1:
        return lambda: np.einsum("nchwrs,crs->nchw", _windows(layer, x, 0), weight[:, 0])

    def conv() -> np.ndarray:
        products = np.tensordot(weight, _windows(layer, x, 0), ((1, 2, 3), (1, 4, 5)))
        return np.ascontiguousarray(products.swapaxes(0, 1))

    return conv


def _scipy(layer: Layer, x: np.ndarray, weight: np.ndarray) -> Call:
    """One correlation for each image and filter."""
    correlate = _module("scipy.signal").correlate
    if not layer.filters or layer.groups > 1 or layer.flops > SCIPY_FLOPS:
        raise Absent("left out where it would take seconds")
    edge = (layer.padding, layer.padding)

    def conv() -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), edge, edge))
        step = layer.stride
        return np.array(
            [[correlate(image, taps, "valid")[0, ::step, ::step] for taps in weight] for image in padded]
        )

    return conv


def _torch(layer: Layer, x: np.ndarray, weight: np.ndarray) -> Call:
    torch = _module("torch")
    torch.set_num_threads(get_num_threads())
    facts = (layer.stride, layer.padding)
    image, taps = torch.from_numpy(x), torch.from_numpy(weight)

    def call() -> Any:
        with torch.inference_mode():
            if not layer.filters:
                return torch.nn.functional.max_pool2d(image, layer.kernel, *facts)
            return torch.nn.functional.conv2d(image, taps, None, *facts, 1, layer.groups)

    return call


def _onnxruntime(layer: Layer, x: np.ndarray, weight: np.ndarray) -> Call:
    """A model of one node, whose weight the session packs when it is made."""
    onnx, runtime = _module("onnx"), _module("onnxruntime")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    facts = {
        "kernel_shape": [layer.kernel] * 2,
        "strides": [layer.stride] * 2,
        "pads": [layer.padding] * 4,
    }
    if layer.filters:
        node = helper.make_node("Conv", ["x", "weight"], ["y"], group=layer.groups, **facts)
    else:
        node = helper.make_node("MaxPool", ["x"], ["y"], **facts)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", real, x.shape)],
        [helper.make_tensor_value_info("y", real, None)],
        [onnx.numpy_helper.from_array(weight, "weight")] if layer.filters else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = get_num_threads()
    # else its idle threads keep the cores of whoever comes next busy
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def _fastconv(layer: Layer, x: np.ndarray, weight: np.ndarray) -> Call:
    facts = (layer.stride, layer.padding)
    if not layer.filters:
        return lambda: F.max_pool2d(x, layer.kernel, *facts)
    return lambda: F.conv2d(x, weight, None, *facts, 1, layer.groups)


#: Who takes part, fastconv first.
CONTENDERS: dict[str, Callable[[Layer, np.ndarray, np.ndarray], Call]] = {
    "fastconv": _fastconv,
    "numpy": _numpy,
    "scipy": _scipy,
    "torch": _torch,
    "onnxruntime": _onnxruntime,
}


def line_up(layer: Layer) -> tuple[dict[str, Call], dict[str, str]]:
    """Those that compute a layer, each of which gave the right result, and why others do not."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(layer.x_shape, np.float32)
    taps = (layer.filters, layer.x_shape[1] // layer.groups, layer.kernel, layer.kernel)
    weight = rng.standard_normal(taps, np.float32)
    expected = np.asarray(_numpy(layer, x.astype(np.float64), weight.astype(np.float64))())
    scale = math.sqrt(np.square(expected).mean())
    calls, absent = {}, {}
    for name, make in CONTENDERS.items():
        try:
            call = make(layer, x, weight)
        except Absent as reason:
            absent[name] = str(reason)
            continue
        error = float(abs(np.asarray(call()) - expected).max()) / scale
        if not error <= TOLERANCE:  # a NaN is no rounding error either
            raise ArithmeticError(f"{name} is wrong by {error:.2g} on {layer.name} ({layer})")
        calls[name] = call
    return calls, absent


def medians(calls: Mapping[str, Call], seconds: float) -> dict[str, float]:
    """Median seconds of a call of each, in turns, round after round, for about `seconds` in all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    while not all(times.values()) or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            time.sleep(PAUSE)
            call()
            count, begin = 0, time.perf_counter()
            while not count or time.perf_counter() - begin < TURN:
                call()
                count += 1
            times[name].append((time.perf_counter() - begin) / count)
    return {name: statistics.median(found) for name, found in times.items()}


def _number(value: float) -> str:
    """Three digits, or as many as there are before the point.

    >>> _number(0.01234), _number(12.34), _number(1234.5)
    ('0.0123', '12.3', '1234')
    """
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def compare(seconds: float, say: Callable[[str], object] = print) -> None:
    """Time all layers and tell of each as soon as it is done; at the end what is missing, and the means."""
    names = list(CONTENDERS)[1:]
    width = max(len(layer.name) for layer in LAYERS)
    shapes = max(len(str(layer)) for layer in LAYERS)
    columns = " ".join(f"{name:>11}" for name in names)
    say(f"{'layer':{width}}  {'':{shapes}} {'ms':>7} {'GFLOP/s':>8} {columns}")
    gains: dict[str, list[float]] = {name: [] for name in names}
    missing: dict[str, str] = {}
    for layer in LAYERS:
        calls, absent = line_up(layer)
        found = medians(calls, seconds)
        missing |= absent
        mine = found.pop("fastconv")
        for name, other in found.items():
            gains[name].append(other / mine)
        cells = " ".join(f"{_number(found[name] / mine) if name in found else '-':>11}" for name in names)
        rate = _number(layer.flops / mine / 1e9) if layer.filters else "-"
        say(f"{layer.name:{width}}  {layer!s:{shapes}} {_number(1e3 * mine):>7} {rate:>8} {cells}")
    means = " ".join(
        f"{_number(statistics.geometric_mean(gains[name])) if gains[name] else '-':>11}" for name in names
    )
    say(f"{'geometric mean':{width}}  {'':{shapes}} {'':>7} {'':>8} {means}")
    for name, reason in missing.items():
        say(f"-: {name} is {reason}")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.description = (
        "Time a few layers of well-known networks, float32, forward, against what is installed of NumPy, "
        "SciPy, PyTorch and ONNX Runtime. A column of a peer is its time divided by fastconv's: above 1, "
        "fastconv is faster."
    )
    parser.epilog = (
        "To compare fairly, set MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 first: "
        "else PyTorch pays page faults for each large result."
    )
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=2.0, help="for each layer, about (default: %(default)s)"
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=int,
        default=None,
        help="of all contenders but BLAS (default: all cores)",
    )


def run(arguments: argparse.Namespace, prog: str) -> int:
    """Print the table; `prog` is what errors begin with."""
    try:
        with num_threads(arguments.threads or get_num_threads()):
            show_config()
            print("\ntime of a peer / time of fastconv: above 1, fastconv is faster\n")
            compare(arguments.seconds, lambda line: print(line, flush=True))
    except ValueError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    return 0
