"""Depthwise convolution: each channel by itself, see `fastconv.kernels.depthwise`.

The forward pass slides the kernel down each plane of x, and so does the input gradient with a stride of 1
down those of grad_output, with the kernel turned by half a circle. The input gradient with a stride of 2
spreads each row of grad_output over those of grad_x. The weight gradient sums a channel image by image.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from fastconv.algorithms.base import Algorithm, Bound
from fastconv.algorithms.workspace import scratch
from fastconv.jit import DISABLED, address_of
from fastconv.kernels import depthwise as kernels
from fastconv.kernels.simd import LANES
from fastconv.shapes import ConvShape
from fastconv.threads import Prepared, task_count


def _side(shape: ConvShape) -> int:
    return shape.kernel[2]


def _tasks(shape: ConvShape, planes: int) -> int:
    # what one vector instruction does, 8 or 16 products, is about one elementary step
    return task_count(shape.flops // 16, planes)


@lru_cache(maxsize=1024)
def _prepare_forward(shape: ConvShape, dtype: np.dtype, relu: bool, tasks: int) -> Prepared:
    return Prepared(
        kernels.slide[_side(shape), shape.stride[2], 0],
        dtype,
        tasks,
        "x weight bias y",
        relu=int(relu),
        multiplier=shape.group_out,
        **_planes(shape),
    )


def _planes(shape: ConvShape) -> dict[str, int]:
    """The fields of a record that describe the planes."""
    return {
        "images": shape.batch,
        "channels": shape.out_channels,
        "height": shape.input[1],
        "width": shape.input[2],
        "out_height": shape.output[1],
        "out_width": shape.output[2],
        "pad_y": shape.pad_before[1],
        "pad_x": shape.pad_before[2],
    }


@lru_cache(maxsize=1024)
def _prepare_input_grad(shape: ConvShape, dtype: np.dtype, tasks: int) -> Prepared:
    side = _side(shape)
    if shape.stride[2] == 2:
        fields = _planes(shape)
        return Prepared(kernels.spread[side], dtype, tasks, "grad_output weight grad_x", **fields)
    # a convolution of grad_output that gives grad_x
    return Prepared(
        kernels.slide[side, 1, 1],
        dtype,
        tasks,
        "x weight bias y",
        relu=0,
        images=shape.batch,
        channels=shape.out_channels,
        multiplier=1,
        height=shape.output[1],
        width=shape.output[2],
        out_height=shape.input[1],
        out_width=shape.input[2],
        pad_y=side - 1 - shape.pad_before[1],
        pad_x=side - 1 - shape.pad_before[2],
    )


def _sums_bytes(shape: ConvShape, dtype: np.dtype) -> int:
    """Scratch memory of a task of the weight gradient: a vector for each kernel cell, and a cache line."""
    return (shape.taps * LANES[8 * dtype.itemsize] * dtype.itemsize + 127) // 64 * 64


@lru_cache(maxsize=1024)
def _prepare_weight_grad(shape: ConvShape, dtype: np.dtype, tasks: int) -> Prepared:
    return Prepared(
        kernels.weight_sums[_side(shape), shape.stride[2]],
        dtype,
        tasks,
        "x grad_output grad_weight scratch",
        scratch_bytes=_sums_bytes(shape, dtype),
        multiplier=shape.group_out,
        **_planes(shape),
    )


class Depthwise(Algorithm):
    name = "depthwise"
    summary = "each channel by itself, its sums in registers while the kernel slides down"

    def supports(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        if DISABLED:
            return "it needs the compiler, which NUMBA_DISABLE_JIT turns off"
        if shape.layout != "NCHW":
            return "it reads channels-first arrays only"
        if shape.group_in != 1:
            return f"a group has {shape.group_in} input channels, not one"
        if op == "input_grad" and shape.group_out != 1:
            return f"a group has {shape.group_out} output channels, not one"
        depth, height, width = shape.kernel
        flat = shape.input[0] == shape.output[0] == depth == 1 and shape.pad_before[0] == 0
        if not flat or height != width or width not in kernels.SIDES:
            return "its kernels are squares of " + ", ".join(map(str, kernels.SIDES)) + " cells a side"
        if shape.stride[1] != shape.stride[2] or shape.stride[2] not in kernels.STRIDES:
            return f"the stride is {shape.stride[1:]}, not 1 or 2"
        if shape.dilation[1:] != (1, 1):
            return "there is a dilation"
        return None

    def workspace(self, shape: ConvShape, dtype: np.dtype, op: str) -> int:
        if op != "weight_grad":
            return 0
        return _tasks(shape, shape.out_channels) * _sums_bytes(shape, dtype)

    def details(self, shape: ConvShape, dtype: np.dtype, op: str) -> Mapping[str, object]:
        lanes = LANES[8 * dtype.itemsize]
        if op == "weight_grad":
            return {
                "strips": f"{lanes} pixels wide, a vector of sums for each kernel cell",
                "tasks": f"{_tasks(shape, shape.out_channels)} over channels",
            }
        size = shape.input[2] if op == "input_grad" else shape.output[2]
        vectors = 2 if size > lanes and not (op == "input_grad" and shape.stride[2] == 2) else 1
        return {
            "strips": f"{vectors * lanes} pixels wide, the rows of a strip one after the other",
            "tasks": f"{_tasks(shape, shape.batch * shape.out_channels)} over planes",
        }

    def bind(
        self, shape: ConvShape, dtype: np.dtype, has_bias: bool, relu: bool, packed: bool = False
    ) -> Bound:
        prepared = _prepare_forward(shape, dtype, relu, _tasks(shape, shape.batch * shape.out_channels))

        def run(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
            bias_at = 0 if bias is None else address_of(bias)
            prepared.run(address_of(x), address_of(weight), bias_at, address_of(out))

        return run

    def input_grad(
        self, grad_output: np.ndarray, weight: np.ndarray, out: np.ndarray, shape: ConvShape
    ) -> None:
        tasks = _tasks(shape, shape.batch * shape.out_channels)
        run = _prepare_input_grad(shape, out.dtype, tasks).run
        no_bias = (0,) if shape.stride[2] == 1 else ()
        run(address_of(grad_output), address_of(weight), *no_bias, address_of(out))

    def weight_grad(self, grad_output: np.ndarray, x: np.ndarray, out: np.ndarray, shape: ConvShape) -> None:
        tasks = _tasks(shape, shape.out_channels)
        sums = scratch(tasks * _sums_bytes(shape, out.dtype))
        run = _prepare_weight_grad(shape, out.dtype, tasks).run
        run(address_of(x), address_of(grad_output), address_of(out), sums)
