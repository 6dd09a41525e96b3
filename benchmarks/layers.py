"""Layers of well-known networks: what the benchmarks run.

All are square images with square kernels. Batches are small, as in inference or a training step on a CPU.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple, TypeVar

import numpy as np

#: What can be done to a convolution; "backward" is all three gradients in one call.
CONV_OPERATIONS = ("forward", "input_grad", "weight_grad", "backward")

#: What can be done to a pooling.
POOL_OPERATIONS = (
    "max_pool2d",
    "max_pool2d with indices",
    "max_pool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
)


def _output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


class ConvLayer(NamedTuple):
    """A convolution with bias; `size` is height and width of x.

    >>> layer = ConvLayer("conv1", "ResNet-50", 4, 3, 224, 64, 7, stride=2, padding=3)
    >>> layer.y_shape, layer.flops
    ((4, 64, 112, 112), 944111616)
    >>> print(layer)
    4x3x224x224 -> 64, 7x7 s2 p3
    """

    name: str
    net: str
    batch: int
    in_channels: int
    size: int
    out_channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.batch, self.in_channels, self.size, self.size

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel

    @property
    def y_shape(self) -> tuple[int, ...]:
        size = _output_size(self.size, self.kernel, self.stride, self.padding)
        return self.batch, self.out_channels, size, size

    @property
    def flops(self) -> int:
        """Of the forward pass, and of each gradient: a multiplication and an addition per tap."""
        return 2 * int(np.prod(self.y_shape)) * int(np.prod(self.weight_shape[1:]))

    def __str__(self) -> str:
        shape = f"{'x'.join(map(str, self.x_shape))} -> {self.out_channels}, "
        return shape + _window(self) + (f" g{self.groups}" if self.groups > 1 else "")


class PoolLayer(NamedTuple):
    """A pooling, max or average; `size` is height and width of x.

    >>> layer = PoolLayer("r50_pool1", "ResNet-50", 4, 64, 112, 3, 2, padding=1)
    >>> layer.y_shape
    (4, 64, 56, 56)
    >>> print(layer)
    4x64x112x112, 3x3 s2 p1
    """

    name: str
    net: str
    batch: int
    channels: int
    size: int
    kernel: int
    stride: int
    padding: int = 0

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.batch, self.channels, self.size, self.size

    @property
    def y_shape(self) -> tuple[int, ...]:
        size = _output_size(self.size, self.kernel, self.stride, self.padding)
        return self.batch, self.channels, size, size

    @property
    def flops(self) -> int:
        """A comparison or an addition per tap."""
        return int(np.prod(self.y_shape)) * self.kernel**2

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.x_shape))}, {_window(self)}"


def _window(layer: ConvLayer | PoolLayer) -> str:
    return f"{layer.kernel}x{layer.kernel} s{layer.stride} p{layer.padding}"


CONV_LAYERS = (
    # small nets for 28x28 digits, at the batch sizes they are trained with
    ConvLayer("mnist1", "MNIST", 32, 1, 28, 8, 3, padding=1),
    ConvLayer("mnist2", "MNIST", 32, 8, 14, 16, 3, padding=1),
    ConvLayer("keras1", "MNIST", 32, 1, 28, 32, 3),
    ConvLayer("lenet1", "LeNet-5", 32, 1, 28, 6, 5, padding=2),
    ConvLayer("lenet2", "LeNet-5", 32, 6, 14, 16, 5),
    ConvLayer("vgg1_2", "VGG-16", 1, 64, 224, 64, 3, padding=1),
    ConvLayer("vgg3_2", "VGG-16", 1, 256, 56, 256, 3, padding=1),
    ConvLayer("vgg5_1", "VGG-16", 1, 512, 14, 512, 3, padding=1),
    ConvLayer("r50_conv1", "ResNet-50", 4, 3, 224, 64, 7, stride=2, padding=3),
    ConvLayer("r50_2_3x3", "ResNet-50", 4, 64, 56, 64, 3, padding=1),
    ConvLayer("r50_3_3x3", "ResNet-50", 4, 128, 28, 128, 3, padding=1),
    ConvLayer("r50_4_3x3", "ResNet-50", 4, 256, 14, 256, 3, padding=1),
    ConvLayer("r50_5_3x3", "ResNet-50", 4, 512, 7, 512, 3, padding=1),
    ConvLayer("r50_2_1x1", "ResNet-50", 4, 64, 56, 256, 1),
    ConvLayer("r50_3_1x1", "ResNet-50", 4, 512, 28, 128, 1),
    ConvLayer("r50_4_1x1", "ResNet-50", 4, 256, 14, 1024, 1),
    ConvLayer("r50_5_1x1", "ResNet-50", 4, 2048, 7, 512, 1),
    ConvLayer("r50_3_3x3s2", "ResNet-50", 4, 128, 56, 128, 3, stride=2, padding=1),
    ConvLayer("r50_ds1x1s2", "ResNet-50", 4, 256, 56, 512, 1, stride=2),
    ConvLayer("mobile_dw3x3", "MobileNet", 4, 128, 56, 128, 3, padding=1, groups=128),
    ConvLayer("mobile_dw3x3s2", "MobileNet", 4, 128, 56, 128, 3, stride=2, padding=1, groups=128),
    ConvLayer("mobile_dw3x3_14", "MobileNet", 4, 512, 14, 512, 3, padding=1, groups=512),
    ConvLayer("mobile2_dw_112", "MobileNetV2", 4, 32, 112, 32, 3, padding=1, groups=32),
    ConvLayer("mobile2_dw_56s2", "MobileNetV2", 4, 144, 56, 144, 3, stride=2, padding=1, groups=144),
    ConvLayer("mobile2_dw_28", "MobileNetV2", 4, 192, 28, 192, 3, padding=1, groups=192),
    ConvLayer("mobile2_dw_14", "MobileNetV2", 4, 576, 14, 576, 3, padding=1, groups=576),
    ConvLayer("mobile2_dw_7", "MobileNetV2", 4, 960, 7, 960, 3, padding=1, groups=960),
    ConvLayer("convnext_dw_56", "ConvNeXt", 4, 96, 56, 96, 7, padding=3, groups=96),
    ConvLayer("convnext_dw_14", "ConvNeXt", 4, 384, 14, 384, 7, padding=3, groups=384),
    ConvLayer("resnext_56", "ResNeXt-50", 4, 128, 56, 128, 3, padding=1, groups=32),
    ConvLayer("resnext_14", "ResNeXt-50", 4, 512, 14, 512, 3, padding=1, groups=32),
    ConvLayer("mobile_1x1", "MobileNet", 4, 128, 56, 128, 1),
    ConvLayer("mobile_1x1_14", "MobileNet", 4, 512, 14, 512, 1),
)

#: Calls so small that what surrounds the arithmetic decides.
TINY_LAYERS = (
    ConvLayer("tiny_1x1x8", "tiny", 1, 1, 8, 1, 3, padding=1),
    ConvLayer("tiny_1x3x16", "tiny", 1, 3, 16, 8, 3, padding=1),
    ConvLayer("tiny_1x8x28", "tiny", 1, 8, 28, 16, 3, padding=1),
    ConvLayer("tiny_8x16x14", "tiny", 8, 16, 14, 16, 3, padding=1),
)

POOL_LAYERS = (
    PoolLayer("mnist_pool1", "MNIST", 64, 8, 28, 2, 2),
    PoolLayer("vgg_pool1", "VGG-16", 4, 64, 224, 2, 2),
    PoolLayer("r50_pool1", "ResNet-50", 4, 64, 112, 3, 2, padding=1),
    PoolLayer("global_pool", "ResNet-18", 32, 512, 7, 7, 7),
    PoolLayer("inception_pool", "GoogLeNet", 4, 192, 28, 3, 1, padding=1),
)


AnyLayer = TypeVar("AnyLayer", ConvLayer, PoolLayer)


def smaller(layer: AnyLayer) -> AnyLayer:
    """The same layer for at most 2 images of at most 28 x 28 pixels.

    >>> print(smaller(POOL_LAYERS[1]))
    2x64x28x28, 2x2 s2 p0
    """
    return layer._replace(batch=min(layer.batch, 2), size=min(layer.size, 28))


class ConvData(NamedTuple):
    """What the operations of a convolution read."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    grad_output: np.ndarray

    def astype(self, dtype: Any) -> ConvData:
        return ConvData(*(array.astype(dtype) for array in self))


class PoolData(NamedTuple):
    """What the operations of a pooling read, but for the indices of the largest cells."""

    x: np.ndarray
    grad_output: np.ndarray

    def astype(self, dtype: Any) -> PoolData:
        return PoolData(*(array.astype(dtype) for array in self))


def _generator(layer: ConvLayer | PoolLayer) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(layer.name.encode()))


def conv_data(layer: ConvLayer, dtype: Any = np.float32) -> ConvData:
    """Normally distributed numbers, the same in every run: never zeros, which some CPUs multiply faster.

    >>> conv_data(CONV_LAYERS[0]).weight.shape
    (8, 1, 3, 3)
    """
    rng = _generator(layer)
    weight = rng.standard_normal(layer.weight_shape, dtype)
    return ConvData(
        x=rng.standard_normal(layer.x_shape, dtype),
        weight=weight / np.sqrt(weight[0].size, dtype=dtype),
        bias=rng.standard_normal(layer.out_channels, dtype),
        grad_output=rng.standard_normal(layer.y_shape, dtype),
    )


def pool_data(layer: PoolLayer, dtype: Any = np.float32) -> PoolData:
    """Normally distributed numbers, the same in every run.

    >>> pool_data(POOL_LAYERS[0]).grad_output.shape
    (64, 8, 14, 14)
    """
    rng = _generator(layer)
    return PoolData(rng.standard_normal(layer.x_shape, dtype), rng.standard_normal(layer.y_shape, dtype))
