"""OpenCV's `dnn` module as a contender: a net of one convolution, on as many threads as fastconv has.

The weight belongs to the net, which packs it when it is first run: this contender does not pack it in
every call. Its own kernels include Winograd's for 3 x 3.
"""

from __future__ import annotations

import numpy as np

import fastconv
from benchmarks.contenders import Contender, LeftOut, load
from benchmarks.layers import ConvData, ConvLayer
from benchmarks.onnxruntime_peer import one_node


def conv(op: str, layer: ConvLayer, data: ConvData) -> Contender:
    if op != "forward":
        raise LeftOut("forward only")
    if data.x.dtype != np.float32:
        raise LeftOut("float32 only")
    cv2 = load("cv2")
    cv2.setNumThreads(fastconv.get_num_threads())
    constants = {"weight": data.weight, "bias": data.bias}
    window = {
        "kernel_shape": [layer.kernel] * 2,
        "strides": [layer.stride] * 2,
        "pads": [layer.padding] * 4,
        "group": layer.groups,
    }
    model = one_node("Conv", data.x, constants, ("y",), window, layer.y_shape)
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    net.setPreferableTarget(cv2.dnn.DNN_TARGET_CPU)

    def call() -> np.ndarray:
        net.setInput(data.x)
        y: np.ndarray = net.forward()
        return y

    return Contender(call)
