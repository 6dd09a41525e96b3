"""The convolutional network among autograd's examples, with its convolution and with fastconv's.

    python benchmarks/autograd_convnet.py
    python benchmarks/autograd_convnet.py --data DIR --batches 20

The network of autograd's `examples/convnet.py`: convolutions of 5x5 with 6 and 16 filters, each followed by
2x2 max pooling, tanh layers of 120 and 84 units, softmax; batches of 256, momentum, a prior on the weights.
Contenders share all of it but convolution and pooling, in which "autograd" has what the example has:
`autograd.scipy.signal.convolve`, and `numpy.max` of a reshaped array.

They start from the same parameters and see the same batches, in turns, so the times of one batch are taken
side by side and the trajectories can be compared: in float64 they differ by rounding errors alone. Digits are
those that `python -m fastconv.mnist` has, or with `--data` MNIST's four IDX files.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it finds only its own folder

import autograd
import autograd.numpy as np
from autograd.scipy.signal import convolve

import fastconv.autograd
from benchmarks import conditions
from benchmarks.table import Row, aligned, number
from fastconv.datasets import CLASSES, Digits, load_digits, load_mnist

#: Of the training in the example.
PRIOR, SCALE, RATE, MOMENTUM = 1.0, 0.1, 1e-3, 0.9

#: Of each layer the weight; the bias has as many entries as a convolution's first axis, or a matrix's second.
SHAPES = ((6, 1, 5, 5), (16, 6, 5, 5), (16 * 4 * 4, 120), (120, 84), (84, CLASSES))

Array = Any
Parameters = list[Array]


class Ops(NamedTuple):
    """What contenders differ in."""

    conv: Callable[[Array, Array, Array], Array]  # x (N, C, H, W), weight (K, C, R, S), bias (K,)
    pool: Callable[[Array], Array]
    dtype: str


def example_conv(x: Array, weight: Array, bias: Array) -> Array:
    """As the example calls it. It flips the kernel, which is undone here: small arrays, next to no time."""
    flipped = np.swapaxes(weight, 0, 1)[:, :, ::-1, ::-1]
    y = convolve(x, flipped, axes=([2, 3], [2, 3]), dot_axes=([1], [0]), mode="valid")
    return y + np.reshape(bias, (1, -1, 1, 1))


def example_pool(x: Array) -> Array:
    n, c, height, width = x.shape
    return np.max(np.max(np.reshape(x, (n, c, height // 2, 2, width // 2, 2)), axis=3), axis=4)


def fast_conv(x: Array, weight: Array, bias: Array) -> Array:
    return fastconv.autograd.conv2d(x, weight, bias)


def fast_pool(x: Array) -> Array:
    return fastconv.autograd.max_pool2d(x, 2)


CONTENDERS = {
    "autograd": Ops(example_conv, example_pool, "float64"),
    "fastconv": Ops(fast_conv, fast_pool, "float64"),
    "fastconv float32": Ops(fast_conv, fast_pool, "float32"),
}


def start(seed: int) -> Parameters:
    """Weights and biases in turn."""
    rng = np.random.default_rng(seed)
    sizes = [part for shape in SHAPES for part in (shape, (shape[0] if len(shape) == 4 else shape[1],))]
    return [SCALE * rng.standard_normal(size) for size in sizes]


def log_probabilities(parameters: Parameters, images: Array, ops: Ops) -> Array:
    """(N, 1, 28, 28) to (N, 10)."""
    hidden = images
    for layer in (0, 1):
        hidden = ops.pool(ops.conv(hidden, parameters[2 * layer], parameters[2 * layer + 1]))
    hidden = np.reshape(hidden, (len(images), -1))
    for layer in (2, 3, 4):
        hidden = np.dot(hidden, parameters[2 * layer]) + parameters[2 * layer + 1]
        if layer < 4:
            hidden = np.tanh(hidden)
    top = np.max(hidden, axis=1, keepdims=True)
    return hidden - top - np.log(np.sum(np.exp(hidden - top), axis=1, keepdims=True))


def loss(parameters: Parameters, images: Array, labels: Array, ops: Ops) -> Array:
    """Minus the logarithm of the posterior, up to a constant, over a batch; labels are one-hot rows."""
    prior = sum(np.sum(part**2) for part in parameters)
    return PRIOR * prior - np.sum(log_probabilities(parameters, images, ops) * labels)


class Training:
    """A contender's network on its way."""

    def __init__(self, ops: Ops, seed: int) -> None:
        self.ops = ops
        self.parameters = [part.astype(ops.dtype) for part in start(seed)]
        self.direction = [np.zeros_like(part) for part in self.parameters]
        self.seconds: list[float] = []

    def step(self, images: Array, labels: Array) -> None:
        """One batch, timed."""
        images, labels = images.astype(self.ops.dtype), labels.astype(self.ops.dtype)
        begin = time.perf_counter()
        gradient = autograd.grad(loss)(self.parameters, images, labels, self.ops)
        for part, towards, slope in zip(self.parameters, self.direction, gradient, strict=True):
            towards *= MOMENTUM
            towards += (1 - MOMENTUM) * slope
            part -= RATE * towards
        self.seconds.append(time.perf_counter() - begin)

    def accuracy(self, digits: Digits, batch: int = 256) -> float:
        """On the test digits, by fastconv: whose parameters they are is the question."""
        images = digits.test_images.astype(self.ops.dtype)
        ops = CONTENDERS["fastconv"]
        found = [
            log_probabilities(self.parameters, images[i : i + batch], ops).argmax(1)
            for i in range(0, len(images), batch)
        ]
        return float(np.mean(np.concatenate(found) == digits.test_labels))


def distance(one: Training, other: Training) -> float:
    """The largest difference of two parameters of a layer, as a part of that layer's largest."""
    pairs = zip(one.parameters, other.parameters, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def train(digits: Digits, batch_size: int, batches: int | None, seed: int) -> dict[str, Training]:
    """An epoch, or the first batches of one, by every contender."""
    labels = np.eye(CLASSES)[digits.train_labels]
    parts = [slice(first, first + batch_size) for first in range(0, len(labels), batch_size)][:batches]
    for ops in CONTENDERS.values():  # what is compiled is compiled before the clock starts
        Training(ops, seed).step(digits.train_images[parts[0]], labels[parts[0]])
    contenders = {name: Training(ops, seed) for name, ops in CONTENDERS.items()}
    for part in parts:
        for training in contenders.values():
            training.step(digits.train_images[part], labels[part])
    return contenders


def rows(contenders: dict[str, Training], digits: Digits, batch_size: int) -> list[Row]:
    """Header, and a row for each contender; ratios and differences are to the first one."""
    epoch = -(-len(digits.train_labels) // batch_size)
    first = contenders["autograd"]
    table: list[Row] = [
        ("contender", "ms a batch", "s an epoch", "ratio", "parameters differ by", "test accuracy")
    ]
    for name, training in contenders.items():
        seconds = statistics.median(training.seconds)
        # measured whole where it was run whole
        total = sum(training.seconds) * epoch / len(training.seconds)
        ratio = statistics.median(first.seconds) / seconds
        difference = "" if training is first else f"{distance(training, first):.1e}"
        accuracy = f"{training.accuracy(digits):.2%}"
        table.append((name, number(1e3 * seconds), number(total), number(ratio), difference, accuracy))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Autograd's convolutional network with two convolutions.")
    parser.add_argument("--data", metavar="DIR", type=Path, help="MNIST's four IDX files")
    parser.add_argument("--batch-size", type=int, default=256, help="default: 256, as in the example")
    parser.add_argument("--batches", type=int, help="so many in place of an epoch")
    parser.add_argument("--seed", type=int, default=0, help="of the first parameters (default: 0)")
    options = parser.parse_args(arguments)
    if options.batch_size < 1 or (options.batches is not None and options.batches < 1):
        parser.error("--batch-size and --batches must be at least 1")
    digits = load_digits() if options.data is None else load_mnist(options.data)
    missing = conditions.missing_settings()
    if missing:
        print("for a fair comparison start with " + " ".join(missing))
    with conditions.same_threads():
        contenders = train(digits, options.batch_size, options.batches, options.seed)
    count = len(contenders["autograd"].seconds)
    print(f"{len(digits.train_labels)} digits, {count} batches of {options.batch_size} by each, medians\n")
    print(aligned(rows(contenders, digits, options.batch_size), markdown=False))


if __name__ == "__main__":
    main()
