"""What a trained network of `fastconv.mnist` has learned, on one page: for ``--plot`` (needs Matplotlib)."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastconv import nn
from fastconv.nn.layer import Array

#: Most maps of a convolution that are drawn.
MOST_MAPS = 32
TRAINING, HELD_OUT = "#3a6ea5", "#d1345b"


class Maps(NamedTuple):
    """What a convolution and its activation make of one image: (channels, height, width)."""

    layer: int
    cells: Array


def confusion(labels: Array, predicted: Array, classes: int) -> Array:
    """How often each label (rows) was taken for each class (columns).

    >>> confusion(np.array([0, 1, 1]), np.array([0, 1, 0]), 2)
    array([[1, 0],
           [1, 1]])
    """
    pairs = labels.astype(np.intp) * classes + predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def mosaic(pictures: Array, columns: int) -> Array:
    """Pictures (N, height, width) side by side, a cell of NaN between them.

    >>> mosaic(np.arange(3.0).reshape(3, 1, 1), 2)
    array([[ 0., nan,  1.],
           [nan, nan, nan],
           [ 2., nan, nan]])
    """
    count, height, width = pictures.shape
    rows = -(-count // columns)
    result = np.full((rows * (height + 1), columns * (width + 1)), np.nan, pictures.dtype)
    for index, picture in enumerate(pictures):
        top, left = (height + 1) * (index // columns), (width + 1) * (index % columns)
        result[top : top + height, left : left + width] = picture
    return result[:-1, :-1]


def activation_maps(net: nn.Sequential, image: Array) -> list[Maps]:
    """What each convolution makes of an image (1, ...), with the normalisation and activation behind it."""
    maps: list[Maps] = []
    x, axis = image, 1
    for index, layer in enumerate(net.layers):
        x = layer.forward(x)
        if isinstance(layer, nn.Conv2d):
            axis = -1 if layer.layout == "NHWC" else 1
            maps.append(Maps(index, np.moveaxis(x, axis, 1)[0]))
        elif isinstance(layer, nn.BatchNorm2d | nn.ReLU) and maps and x.ndim == 4:
            if x.shape[2] == maps[-1].cells.shape[1]:
                maps[-1] = Maps(maps[-1].layer, np.moveaxis(x, axis, 1)[0])
        elif x.ndim != 4:
            break
    return maps


def first_filters(net: nn.Sequential) -> Array:
    """The filters of the first convolution, for its first channel: (filters, rows, columns)."""
    state = net.state_dict()  # which has PyTorch's shapes, whatever the layout
    name = next(name for name, value in state.items() if name.endswith("weight") and value.ndim == 4)
    return state[name][:, 0]


def draw_training(
    net: nn.Sequential, history: nn.History, images: Array, labels: Array, path: Path, title: str = ""
) -> None:
    """Draw curves, confusion matrix, first filters and the activation maps of one digit into a file.

    Parameters
    ----------
    net : Sequential
        A classifier of images with one channel.
    history : History
        How it was trained.
    images : ndarray, (N, 1, H, W) or (N, H, W, 1), as `net` takes them
        Those that it is tested with.
    labels : integer ndarray, (N,)
    path : Path
        The file; its ending says the format.
    title : str

    Raises
    ------
    ValueError
        For a format that Matplotlib does not know.
    OSError
        If the file cannot be written.
    """
    # without pyplot nothing looks for a display
    from matplotlib.figure import Figure

    scores = net.predict(images)
    predicted = scores.argmax(1)
    figure = Figure(figsize=(14, 9), layout="constrained")
    grid = figure.add_gridspec(2, 12, height_ratios=(1.15, 1))
    _draw_curves(figure.add_subplot(grid[0, :4]), "loss", history.loss, history.val_loss)
    _draw_curves(figure.add_subplot(grid[0, 4:8]), "accuracy", history.accuracy, history.val_accuracy)
    _draw_confusion(figure.add_subplot(grid[0, 8:]), confusion(labels, predicted, scores.shape[1]))

    maps = activation_maps(net, images[:1])
    shown = maps[:1] + maps[1:][-1:]  # the first and the last
    _draw_filters(figure.add_subplot(grid[1, :3]), first_filters(net))
    _draw_digit(figure.add_subplot(grid[1, 3:5]), images[0], int(labels[0]), int(predicted[0]))
    width = 7 // len(shown)
    for index, one in enumerate(shown):
        first = 5 + index * width
        last = 12 if index == len(shown) - 1 else first + width
        _draw_maps(figure.add_subplot(grid[1, first:last]), one)
    figure.suptitle(title, fontsize="large")
    figure.savefig(path, dpi=110)


def _draw_curves(axes: Any, name: str, training: list[float], held_out: list[float]) -> None:
    epochs = range(1, len(training) + 1)
    axes.plot(epochs, training, marker=".", color=TRAINING, label="training")
    if held_out:
        axes.plot(epochs, held_out, marker=".", color=HELD_OUT, label="held out")
    axes.set_title(name, loc="left", fontweight="bold")
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper right" if name == "loss" else "lower right")


def _draw_confusion(axes: Any, counts: Array) -> None:
    """Colour by the logarithm, or the errors could not be seen beside what is right."""
    wrong = counts.sum() - np.trace(counts)
    axes.imshow(np.log1p(counts), cmap="Blues")
    dark = np.log1p(counts).max() * 0.55
    for row, column in zip(*np.nonzero(counts), strict=True):
        count = counts[row, column]
        colour = "white" if np.log1p(count) > dark else "black"
        axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(counts)))
    axes.set_yticks(range(len(counts)))
    axes.tick_params(length=0)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    axes.set_title(f"held out: {wrong:,} of {counts.sum():,} wrong", loc="left", fontweight="bold")


def _picture(axes: Any, cells: Array, title: str, **colours: Any) -> None:
    axes.imshow(cells, interpolation="nearest", **colours)
    axes.set_title(title, loc="left", fontweight="bold", fontsize="medium")
    axes.set_axis_off()
    axes.set_anchor("N")


def _columns(count: int) -> int:
    """Columns of a mosaic: no fewer than rows, and rather such that no place stays empty.

    >>> [_columns(count) for count in (1, 8, 13, 16, 24, 32)]
    [1, 4, 4, 4, 6, 8]
    """
    least = isqrt(count - 1) + 1
    whole = [columns for columns in range(least, 2 * least) if count % columns == 0]
    return min(whole, default=least)


def _some(count: int, what: str) -> str:
    """How many of them are drawn."""
    return f"{count} {what}" if count <= MOST_MAPS else f"{MOST_MAPS} of {count} {what}"


def _draw_filters(axes: Any, filters: Array) -> None:
    drawn, size = filters[:MOST_MAPS], "x".join(map(str, filters.shape[1:]))
    most = float(abs(drawn).max()) or 1.0
    title = f"first layer: {_some(len(filters), 'filters')}, {size}"
    picture = mosaic(drawn, _columns(len(drawn)))
    _picture(axes, picture, title, cmap="RdBu_r", vmin=-most, vmax=most)


def _draw_digit(axes: Any, image: Array, label: int, predicted: int) -> None:
    verdict = "recognised" if label == predicted else f"taken for a {predicted}"
    _picture(axes, image.squeeze(), f"a held-out {label}, {verdict}", cmap="gray_r")


def _draw_maps(axes: Any, maps: Maps) -> None:
    drawn = maps.cells[:MOST_MAPS]
    title = f"what layer {maps.layer} makes of it: {_some(len(maps.cells), 'maps')}"
    _picture(axes, mosaic(drawn, _columns(len(drawn))), title, cmap="magma")
