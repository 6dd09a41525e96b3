"""ONNX Runtime as a contender: a session for a model of one node, on as many threads as fastconv has.

The weight is a constant of the model, which the session packs when it is made: this contender does not pack
it in every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import fastconv
from benchmarks.contenders import Contender, LeftOut, load
from benchmarks.layers import ConvData, ConvLayer, PoolData, PoolLayer

#: Old enough for any ONNX Runtime of the last years to read, whatever the version of `onnx` that writes it.
OPSET, IR_VERSION = 17, 8


def one_node(
    node: str,
    x: np.ndarray,
    constants: Mapping[str, np.ndarray],
    outputs: tuple[str, ...],
    attributes: Mapping[str, Any],
    y_shape: tuple[int, ...] | None = None,
) -> Any:
    """An ONNX model of one node, whose other inputs are constants."""
    onnx = load("onnx")
    helper = onnx.helper
    real = helper.np_dtype_to_tensor_dtype(x.dtype)
    kinds = {"y": real, "indices": onnx.TensorProto.INT64}
    graph = helper.make_graph(
        [helper.make_node(node, ["x", *constants], outputs, **attributes)],
        node,
        [helper.make_tensor_value_info("x", real, x.shape)],
        [helper.make_tensor_value_info(name, kinds[name], y_shape) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _session(
    node: str,
    x: np.ndarray,
    constants: Mapping[str, np.ndarray],
    outputs: tuple[str, ...],
    attributes: Mapping[str, Any],
) -> Contender:
    model, onnxruntime = one_node(node, x, constants, outputs, attributes), load("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = fastconv.get_num_threads()
    options.inter_op_num_threads = 1
    # else its idle threads keep the cores of whoever is timed next busy
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        raise LeftOut(f"has no {node} for {x.dtype}") from None
    return Contender(lambda: session.run(None, {"x": x}))


def _window(layer: ConvLayer | PoolLayer) -> dict[str, list[int]]:
    return {
        "kernel_shape": [layer.kernel] * 2,
        "strides": [layer.stride] * 2,
        "pads": [layer.padding] * 4,
    }


def conv(op: str, layer: ConvLayer, data: ConvData) -> Contender:
    if op != "forward":
        raise LeftOut("forward only")
    constants = {"weight": data.weight, "bias": data.bias}
    return _session("Conv", data.x, constants, ("y",), {"group": layer.groups, **_window(layer)})


def pool(op: str, layer: PoolLayer, data: PoolData) -> Contender:
    if op.endswith("backward"):
        raise LeftOut("forward only")
    if op == "avg_pool2d":
        return _session("AveragePool", data.x, {}, ("y",), {"count_include_pad": 1, **_window(layer)})
    if op == "max_pool2d":
        return _session("MaxPool", data.x, {}, ("y",), _window(layer))
    # ONNX counts places from the start of x, fastconv and torch from the start of the plane
    contender = _session("MaxPool", data.x, {}, ("y", "indices"), _window(layer))
    return contender._replace(logical=lambda results: [results[0], results[1] % layer.size**2])
