"""OpenVINO as a contender: a compiled model of one convolution, on as many threads as fastconv has.

The weight is a constant of the model, which is packed when it is compiled: this contender does not pack it
in every call. Input and output are shared with the caller's arrays, so that no call copies them.
"""

from __future__ import annotations

import numpy as np

import fastconv
from benchmarks.contenders import Contender, LeftOut, load
from benchmarks.layers import ConvData, ConvLayer


def conv(op: str, layer: ConvLayer, data: ConvData) -> Contender:
    if op != "forward":
        raise LeftOut("forward only")
    openvino = load("openvino")
    ops = load("openvino.opset13")
    x = ops.parameter(data.x.shape, data.x.dtype, name="x")
    steps, pads = [layer.stride] * 2, [layer.padding] * 2
    if layer.groups == 1:
        y = ops.convolution(x, ops.constant(data.weight), steps, pads, pads, [1, 1])
    else:
        parts = data.weight.reshape(layer.groups, -1, *data.weight.shape[1:])
        y = ops.group_convolution(x, ops.constant(parts), steps, pads, pads, [1, 1])
    y = ops.add(y, ops.constant(data.bias.reshape(1, -1, 1, 1)))
    # else float32 is computed in bfloat16 where the processor has it
    settings = {
        "INFERENCE_PRECISION_HINT": "f64" if data.x.dtype == np.float64 else "f32",
        "INFERENCE_NUM_THREADS": fastconv.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    try:
        model = openvino.Core().compile_model(openvino.Model([y], [x], "conv"), "CPU", settings)
    except RuntimeError:
        raise LeftOut(f"has no convolution of {data.x.dtype}") from None
    request = model.create_infer_request()
    request.set_input_tensor(openvino.Tensor(data.x, shared_memory=True))

    def call() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return Contender(call)
