"""What ONNX's own tests of the operators leave open, and the weights that are packed once."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from processes import python

import fastconv
from fastconv.__main__ import main

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
helper = importlib.import_module("onnx.helper")
numpy_helper = importlib.import_module("onnx.numpy_helper")
ReferenceEvaluator = importlib.import_module("onnx.reference").ReferenceEvaluator
OPS = importlib.import_module("fastconv.onnx").OPS
base = importlib.import_module("fastconv.onnx.base")
command = importlib.import_module("fastconv.onnx.command")

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def model_of(
    node: str,
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray] | None = None,
    outputs: int = 1,
    opset: int = 22,
    **attributes: Any,
) -> Any:
    """A model of one node; `constants` are its last inputs, "" for one that is left out."""
    constants = constants or {}
    names = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(node, [*inputs, *constants], names, name="n", **attributes)],
        node,
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
            if name
        ],
        [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in names],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def evaluate(node: str, inputs: dict[str, np.ndarray], new_ops: Any = OPS, **facts: Any) -> list[np.ndarray]:
    evaluator = ReferenceEvaluator(model_of(node, inputs, **facts), new_ops=new_ops)
    results: list[np.ndarray] = evaluator.run(None, {name: array for name, array in inputs.items() if name})
    return results


# --- convolution ------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto_pad", ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv(rank: int, auto_pad: str) -> None:
    size, kernel, stride, dilation = (9, 8, 7)[:rank], (2, 3, 2)[:rank], (2, 3, 1)[:rank], (1, 2, 2)[:rank]
    x, weight, bias = normal(2, 4, *size), normal(6, 2, *kernel), normal(6)
    pads = [(0, 1), (2, 1), (1, 0)][:rank] if auto_pad == "NOTSET" else [(0, 0)] * rank
    if auto_pad.startswith("SAME"):
        pads = list(oracles.same_pads(size, kernel, stride, dilation, auto_pad == "SAME_LOWER"))
    attributes: dict[str, Any] = {"strides": stride, "dilations": dilation, "group": 2, "auto_pad": auto_pad}
    if auto_pad == "NOTSET":
        attributes["pads"] = [before for before, _ in pads] + [after for _, after in pads]
    (y,) = evaluate("Conv", {"x": x, "w": weight, "b": bias}, **attributes)
    expected = oracles.conv(x, weight, stride, pads, dilation, 2) + bias.reshape(-1, *(1,) * rank)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("attributes", "pads", "extra"),
    [
        ({}, [(0, 0), (0, 0)], (0, 0)),
        ({"pads": [1, 0, 0, 2]}, [(1, 0), (0, 2)], (0, 0)),
        ({"pads": [1, 0, 0, 2], "output_padding": [2, 1]}, [(1, 0), (0, 2)], (2, 1)),
        ({"auto_pad": "VALID"}, [(0, 0), (0, 0)], (0, 0)),
        # of what is too much, the odd cell at the end, or else at the start
        ({"auto_pad": "SAME_UPPER"}, [(0, 1), (0, 1)], (0, 0)),
        ({"auto_pad": "SAME_LOWER"}, [(1, 0), (1, 0)], (0, 0)),
        ({"output_shape": [12, 10]}, [(1, 0), (1, 0)], (0, 0)),
        ({"output_shape": [12, 10], "auto_pad": "SAME_UPPER"}, [(0, 1), (0, 1)], (0, 0)),
        # what is too little comes at the end, even more than a stride
        ({"output_shape": [14, 12]}, [(0, 0), (0, 0)], (1, 1)),
        ({"output_shape": [19, 11]}, [(0, 0), (0, 0)], (6, 0)),
    ],
    ids=str,
)
def test_conv_transpose(attributes: dict[str, Any], pads: Any, extra: tuple[int, int]) -> None:
    x, weight, bias = normal(2, 4, 4, 5), normal(4, 3, 4, 3), normal(6)
    (y,) = evaluate("ConvTranspose", {"x": x, "w": weight, "b": bias}, strides=[3, 2], group=2, **attributes)
    expected = oracles.conv_transpose(x, weight, (3, 2), pads, extra, (1, 1), 2) + bias.reshape(-1, 1, 1)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_integers_per_channel() -> None:
    x = RNG.integers(-128, 128, (1, 4, 6, 6)).astype(np.int8)
    weight = RNG.integers(0, 256, (6, 2, 3, 3)).astype(np.uint8)
    zeros = RNG.integers(0, 256, 6).astype(np.uint8)
    constants = {"w": weight, "xz": np.array(-3, np.int8), "wz": zeros}
    (y,) = evaluate("ConvInteger", {"x": x}, constants=constants, opset=10, group=2, auto_pad="SAME_UPPER")
    centred = weight.astype(float) - zeros.reshape(-1, 1, 1, 1)
    expected = oracles.conv(x + 3.0, centred, (1, 1), [(1, 1)] * 2, (1, 1), 2)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, expected)


def test_wrong_kernel_shape() -> None:
    with pytest.raises(ValueError, match="kernel_shape = "):
        evaluate("Conv", {"x": normal(1, 1, 5, 5), "w": normal(1, 1, 3, 3)}, kernel_shape=[2, 2])


def test_too_many_axes() -> None:
    with pytest.raises(ValueError, match="1 to 3 spatial axes, not 4"):
        evaluate("Conv", {"x": normal(1, 1, 5, 5, 5, 5), "w": normal(1, 1, 3, 3, 3, 3)})


# --- pooling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage_order", [0, 1])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_places_of_maxima(rank: int, storage_order: int) -> None:
    """They count in the whole of x; by columns in each plane, and from plane to plane as ever."""
    size = (5, 6, 7)[:rank]
    x = normal(2, 3, *size)
    facts = {"kernel_shape": [2] * rank, "strides": [2] * rank, "storage_order": storage_order}
    y, places = evaluate("MaxPool", {"x": x}, outputs=2, **facts)
    planes = x.reshape(6, *size)
    flat = np.concatenate([plane.ravel(order="F" if storage_order else "C") for plane in planes])
    np.testing.assert_array_equal(flat[places], y)
    starts = np.arange(6).reshape(2, 3, *(1,) * rank) * planes[0].size
    assert (places >= starts).all()
    assert (places < starts + planes[0].size).all()


def test_ceil_mode_of_norms() -> None:
    """A window that hangs over the end is the norm of what is there."""
    x = normal(1, 2, 6, 7)
    facts = {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1, "pads": [0, 1, 0, 0]}
    (y,) = evaluate("LpPool", {"x": x}, p=3, **facts)
    pads = [(0, 0), (1, 0)]
    windows = oracles.windows_of(x, (3, 2), (2, 2), pads, (1, 1), True)
    expected = (np.abs(windows.astype(float)) ** 3).sum(axis=(-1, -2)) ** (1 / 3)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_global_norm(rank: int) -> None:
    x = normal(2, 3, *(4, 5, 3)[:rank])
    (y,) = evaluate("GlobalLpPool", {"x": x}, p=3)
    axes = tuple(range(2, 2 + rank))
    np.testing.assert_allclose(y, (abs(x.astype(float)) ** 3).sum(axes, keepdims=True) ** (1 / 3), rtol=1e-5)


def test_default_of_an_old_opset() -> None:
    """Attributes and defaults are those of the model's opset: padding did not count, p was a float."""
    x = normal(1, 1, 4, 4)
    (y,) = evaluate("LpPool", {"x": x}, opset=1, kernel_shape=[2, 2], p=1.0)
    np.testing.assert_allclose(
        y, oracles.windows_of(abs(x), (2, 2), (1, 1), [(0, 0)] * 2, (1, 1)).sum((-1, -2)), 1e-5
    )
    (y,) = evaluate("AveragePool", {"x": x}, opset=1, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    np.testing.assert_allclose(y[0, 0, 0, 0], x[0, 0, :2, :2].mean(), rtol=1e-5)


def test_unpooling_is_what_pooling_was() -> None:
    x = normal(2, 3, 6, 6)
    facts = {"kernel_shape": [2, 3], "strides": [2, 3]}
    y, places = evaluate("MaxPool", {"x": x}, outputs=2, **facts)
    (z,) = evaluate("MaxUnpool", {"y": y, "p": places}, **facts)
    np.testing.assert_array_equal(z.ravel()[places], y)
    assert (z != 0).sum() == y.size
    (larger,) = evaluate("MaxUnpool", {"y": y, "p": places, "s": np.array([2, 3, 7, 8])}, **facts)
    np.testing.assert_array_equal(larger[:, :, :6, :6], z)
    assert np.count_nonzero(larger) == y.size


# --- around -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batch_normalization(opset: int, dtype: Any) -> None:
    x = normal(2, 3, 4, 5).astype(dtype)
    arrays = {name: (normal(3) ** 2 + 0.1).astype(dtype) for name in ("s", "b", "m", "v")}
    (y,) = evaluate("BatchNormalization", {"x": x, **arrays}, opset=opset, epsilon=0.25)
    s, b, m, v = (array.reshape(-1, 1, 1).astype(float) for array in arrays.values())
    np.testing.assert_allclose(y, (x - m) / np.sqrt(v + 0.25) * s + b, rtol=1e-5, atol=1e-6)
    assert y.dtype == dtype


def test_training_is_left_to_the_evaluator() -> None:
    inputs = {"x": normal(2, 3, 4), **{name: normal(3) ** 2 for name in ("s", "b", "m", "v")}}
    facts: dict[str, Any] = {"outputs": 3, "training_mode": 1}
    mine = evaluate("BatchNormalization", inputs, **facts)
    for one, other in zip(mine, evaluate("BatchNormalization", inputs, None, **facts), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [1, 3, 4, 5])
@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_lrn(size: int, beta: float) -> None:
    x = normal(1, 6, 3, 2)
    (y,) = evaluate("LRN", {"x": x}, size=size, alpha=0.3, beta=beta, bias=1.5)
    for c in range(6):
        near = x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1].astype(float)
        expected = x[:, c] / (1.5 + 0.3 / size * (near**2).sum(axis=1)) ** beta
        np.testing.assert_allclose(y[:, c], expected, rtol=1e-5)


def test_softmax_of_old_and_new_opsets() -> None:
    x = normal(2, 3, 4) * 50
    for opset, attributes, axes in ((9, {}, (1, 2)), (9, {"axis": 2}, 2), (13, {}, -1), (13, {"axis": 1}, 1)):
        (y,) = evaluate("Softmax", {"x": x}, opset=opset, **attributes)
        shifted = np.exp(x.astype(float) - x.max(axis=axes, keepdims=True))
        np.testing.assert_allclose(y, shifted / shifted.sum(axis=axes, keepdims=True), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.float16])
def test_relu(dtype: Any) -> None:
    x = (normal(5, 7) * 3).astype(dtype)
    (y,) = evaluate("Relu", {"x": x})
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, np.maximum(x, 0))


# --- weights packed once ----------------------------------------------------------------------------


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> Counted:
    module = importlib.import_module("fastconv.onnx.convolution")
    counted = Counted(fastconv.prepack)
    monkeypatch.setattr(module, "prepack", counted)
    return counted


def test_an_initialiser_is_packed_once(packing: Counted) -> None:
    x, weight = normal(2, 3, 8, 8), normal(4, 3, 3, 3)
    evaluator = ReferenceEvaluator(model_of("Conv", {"x": x}, {"w": weight}), new_ops=OPS)
    for batch in (1, 2, 2):
        (y,) = evaluator.run(None, {"x": x[:batch]})
        np.testing.assert_array_equal(y, fastconv.conv2d(x[:batch], weight))
    assert packing.calls == 1
    larger = normal(1, 3, 9, 10)  # another algorithm may be faster
    np.testing.assert_array_equal(evaluator.run(None, {"x": larger})[0], fastconv.conv2d(larger, weight))
    assert packing.calls == 2


def test_integers_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(fastconv.prepack_integer)
    monkeypatch.setattr(importlib.import_module("fastconv.onnx.convolution"), "prepack_integer", counted)
    x, weight = np.arange(25, dtype=np.uint8).reshape(1, 1, 5, 5), np.ones((2, 1, 3, 3), np.uint8)
    constants = {"w": weight, "xz": np.array(1, np.uint8), "wz": np.array([0, 3], np.uint8)}
    evaluator = ReferenceEvaluator(model_of("ConvInteger", {"x": x}, constants, opset=10), new_ops=OPS)
    first, second = (evaluator.run(None, {"x": x})[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert counted.calls == 1


def test_a_weight_that_changes_in_place(packing: Counted) -> None:
    """An input of the model, which its owner writes to between runs: never a stale result."""
    x, weight = normal(1, 3, 8, 8), normal(4, 3, 3, 3)
    evaluator = ReferenceEvaluator(model_of("Conv", {"x": x, "w": weight}), new_ops=OPS)
    for change in (0, 0, 0, 1, 0, 2):
        weight[0, 0, 0, 0] += change
        (y,) = evaluator.run(None, {"x": x, "w": weight})
        np.testing.assert_array_equal(y, fastconv.conv2d(x, weight))
    assert 1 <= packing.calls <= 3  # not at first sight, and then for each change


def test_a_weight_that_is_computed_is_not_packed(packing: Counted) -> None:
    x, weight = normal(1, 3, 8, 8), normal(4, 3, 3, 3)
    nodes = [helper.make_node("Add", ["w", "w"], ["v"]), helper.make_node("Conv", ["x", "v"], ["y"])]
    real = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", real, x.shape)],
        [helper.make_tensor_value_info("y", real, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    evaluator = ReferenceEvaluator(model, new_ops=OPS)
    for _ in range(3):
        np.testing.assert_array_equal(evaluator.run(None, {"x": x})[0], fastconv.conv2d(x, weight + weight))
    assert packing.calls == 0


def test_what_is_frozen() -> None:
    array = np.arange(4)
    view = array[:]
    view.flags.writeable = False
    assert not base.is_frozen(array)
    assert not base.is_frozen(view)  # its owner can write
    array.flags.writeable = False
    assert base.is_frozen(view)
    assert not base.is_frozen(np.frombuffer(bytearray(8), np.uint8)[2:])
    assert base.is_frozen(np.frombuffer(bytes(8), np.uint8).reshape(2, 4))


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    inputs = {"x": normal(1, 3, 6, 6)}
    onnx.save(model_of("Conv", inputs, {"w": normal(4, 3, 3, 3)}), tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", inputs["x"])
    return tmp_path / "model.onnx"


def test_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = file.with_name("y.npz")
    given = ["--input", str(file.with_name("x.npy")), "--runs", "1", "--nodes", "--save", str(results)]
    assert main(["onnx", str(file), *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["node", "fastconv", "ms"]
    assert [line.split("  ")[0] for line in lines[1:4]] == ["Conv n", "1 Conv", "all"]
    assert lines[-1].startswith("y0 (1, 4, 4, 4) float32: ")
    assert " by " not in lines[-1] or float(lines[-1].split(" by ")[1].split()[0]) < 1e-4
    evaluator = ReferenceEvaluator(str(file), new_ops=OPS)
    expected = evaluator.run(None, {"x": np.load(file.with_name("x.npy"))})[0]
    np.testing.assert_array_equal(np.load(results)["y0"], expected)


def test_command_without_the_plain_evaluator(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["onnx", str(file), "--no-plain", "--runs", "1"]) == 0
    assert "plain" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "missing.npy"], "No such file"),
        (["--input", "z=x.npy"], "the model has no input 'z', but x"),
        (["--input", "x.npy", "x.npy"], "no more than 1 inputs: x"),
        (["--runs", "0"], "--runs must be at least 1"),
    ],
)
def test_command_refuses(
    file: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(file.parent)
    assert main(["onnx", str(file), *options]) == 2
    assert message in capsys.readouterr().err


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "no.onnx"
    path.write_bytes(b"\x0fnothing")
    assert main(["onnx", str(path)]) == 2
    assert "is no ONNX model" in capsys.readouterr().err


def test_inputs_without_shape_or_number() -> None:
    item = helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, None)
    with pytest.raises(ValueError, match="input 't' has no shape"):
        command.random_input(item, RNG)
    item = helper.make_tensor_value_info("t", onnx.TensorProto.STRING, [2])
    with pytest.raises(ValueError, match="give it with --input t="):
        command.random_input(item, RNG)
    item = helper.make_tensor_value_info("t", onnx.TensorProto.UINT8, ["N", 3])
    assert command.random_input(item, RNG).shape == (1, 3)


def test_fastconv_alone_does_not_import_onnx() -> None:
    code = "import sys, fastconv.__main__; print('onnx' in sys.modules)"
    assert python(code).split() == ["False"], os.environ.get("PYTHONPATH")
