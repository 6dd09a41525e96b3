"""ONNX models by fastconv: operators for the reference evaluator of the ``onnx`` package.

>>> import numpy as np, onnx.parser
>>> from onnx.reference import ReferenceEvaluator
>>> import fastconv.onnx
>>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 17]>
...     net (float[N, 3, H, W] x, float[8, 3, 3, 3] weight) => (float[N, 8, H, W] y)
...     { y = Conv <pads = [1, 1, 1, 1]> (x, weight) }''')
>>> evaluator = ReferenceEvaluator(model, new_ops=fastconv.onnx.OPS)
>>> x, weight = np.ones((2, 3, 16, 16), np.float32), np.ones((8, 3, 3, 3), np.float32)
>>> evaluator.run(None, {"x": x, "weight": weight})[0].shape
(2, 8, 16, 16)
"""

from __future__ import annotations

from onnx.reference.op_run import OpRun

from fastconv.onnx.around import LRN, BatchNormalization, ConstantOfShape, Relu, Softmax
from fastconv.onnx.convolution import Col2Im, Conv, ConvInteger, ConvTranspose, DeformConv, QLinearConv
from fastconv.onnx.pooling import (
    AveragePool,
    GlobalAveragePool,
    GlobalLpPool,
    GlobalMaxPool,
    LpPool,
    MaxPool,
    MaxUnpool,
)

__all__ = ["OPS"]

#: Classes for ``onnx.reference.ReferenceEvaluator(model, new_ops=fastconv.onnx.OPS)``.
OPS: list[type[OpRun]] = [
    Conv,
    ConvTranspose,
    ConvInteger,
    QLinearConv,
    DeformConv,
    Col2Im,
    MaxPool,
    AveragePool,
    LpPool,
    GlobalAveragePool,
    GlobalMaxPool,
    GlobalLpPool,
    MaxUnpool,
    # not fastconv's own trade, but around it in most networks
    Relu,
    BatchNormalization,
    LRN,
    Softmax,
    ConstantOfShape,
]
