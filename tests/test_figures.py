"""What ``--plot`` draws: the numbers in it, and a file in the end."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv import figures, mnist, nn
from fastconv.datasets import Digits

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)


def digits(count: int = 40) -> Digits:
    rng = np.random.default_rng(5)
    images, labels = rng.random((count, 1, 28, 28), np.float32), np.arange(count) % 10
    return Digits(images, labels, images[:20], labels[:20])


def test_confusion_counts_every_sample() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(4, size=(2, 100))
    counts = figures.confusion(labels.astype(np.uint8), predicted, 4)
    for row in range(4):
        for column in range(4):
            assert counts[row, column] == ((labels == row) & (predicted == column)).sum()


def test_mosaic_shows_every_picture() -> None:
    pictures = np.random.default_rng(0).random((7, 2, 3))
    picture = figures.mosaic(pictures, 3)
    assert picture.shape == (8, 11)
    for index, one in enumerate(pictures):
        top, left = 3 * (index // 3), 4 * (index % 3)
        np.testing.assert_array_equal(picture[top : top + 2, left : left + 3], one)
    assert np.isnan(picture).sum() == picture.size - pictures.size


@pytest.mark.parametrize("model", mnist.MODELS)
def test_maps_are_what_the_network_computes(model: str) -> None:
    """Of each convolution, channels first whatever the layout, behind normalisation and ReLU, not pooled."""
    layout = mnist.MODELS[model].layout
    net = mnist.MODELS[model].build(np.random.default_rng(0))
    image = mnist.prepare(digits(1).train_images, layout)
    maps = figures.activation_maps(net, image)
    convolutions = [index for index, layer in enumerate(net.layers) if isinstance(layer, nn.Conv2d)]
    assert [one.layer for one in maps] == convolutions
    for one in maps:
        last = one.layer
        while isinstance(net.layers[last + 1], nn.BatchNorm2d | nn.ReLU):
            last += 1
        expected = nn.Sequential(*net.layers[: last + 1]).forward(image)[0]
        if layout == "NHWC":
            expected = np.moveaxis(expected, -1, 0)
        np.testing.assert_allclose(one.cells, expected, rtol=1e-4, atol=1e-5)
        assert one.cells.min() >= 0
    filters = figures.first_filters(net)
    assert filters.shape == (len(maps[0].cells), 3, 3)


@needs_matplotlib
def test_plot_without_a_name(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """It goes into the working folder, and says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mnist, "load_digits", digits)
    assert mnist.main(["--epochs", "1", "--model", "keras", "--plot"]) == 0
    assert f"drawn: {mnist.PLOT_FILE}" in capsys.readouterr().out
    assert (tmp_path / mnist.PLOT_FILE).read_bytes().startswith(b"\x89PNG\r\n")
