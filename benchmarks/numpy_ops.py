"""The operations in plain NumPy: `sliding_window_view` and `einsum`, which calls BLAS.

In float32 this is a contender, in float64 the reference that all contenders are checked against. It shares
no code with fastconv.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.layers import ConvData, ConvLayer, PoolData, PoolLayer

Arrays = tuple[np.ndarray, ...]


def _padded(x: np.ndarray, padding: int, value: float = 0) -> np.ndarray:
    if padding == 0:
        return x
    edges = (padding, padding)
    return np.pad(x, ((0, 0), (0, 0), edges, edges), constant_values=value)


def _unpadded(x: np.ndarray, padding: int) -> np.ndarray:
    return x[:, :, padding : x.shape[2] - padding, padding : x.shape[3] - padding]


def _windows(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """The windows of x, (N, C, P, Q, R, S): a view, which can be written to if x can."""
    windows = sliding_window_view(x, (kernel, kernel), axis=(2, 3), writeable=x.flags.writeable)
    return windows[:, :, ::stride, ::stride]


def forward(layer: ConvLayer, data: ConvData) -> np.ndarray:
    """Every group is one product of matrices, (K, CRS) x (CRS, NPQ); BLAS needs a copy of all windows."""
    windows = _windows(_padded(data.x, layer.padding), layer.kernel, layer.stride)
    parts = zip(np.split(windows, layer.groups, 1), np.split(data.weight, layer.groups, 0), strict=True)
    y = np.concatenate(
        [np.einsum("nchwrs,kcrs->nkhw", cells, taps, optimize=True) for cells, taps in parts], axis=1
    )
    y += data.bias[:, None, None]
    return y


def input_grad(layer: ConvLayer, data: ConvData) -> np.ndarray:
    """What each tap passes back, added up tap by tap: as windows overlap, not all can be added at once."""
    padded = (*layer.x_shape[:2], *(layer.size + 2 * layer.padding,) * 2)
    grad_x = np.zeros(padded, data.grad_output.dtype)
    windows = _windows(grad_x, layer.kernel, layer.stride)
    parts = zip(
        np.split(windows, layer.groups, 1),
        np.split(data.grad_output, layer.groups, 1),
        np.split(data.weight, layer.groups, 0),
        strict=True,
    )
    for cells, grad, taps in parts:
        for r in range(layer.kernel):
            for s in range(layer.kernel):
                cells[..., r, s] += np.einsum("nkhw,kc->nchw", grad, taps[:, :, r, s], optimize=True)
    return _unpadded(grad_x, layer.padding)


def weight_grad(layer: ConvLayer, data: ConvData) -> np.ndarray:
    windows = _windows(_padded(data.x, layer.padding), layer.kernel, layer.stride)
    parts = zip(np.split(windows, layer.groups, 1), np.split(data.grad_output, layer.groups, 1), strict=True)
    return np.concatenate(
        [np.einsum("nchwrs,nkhw->kcrs", cells, grad, optimize=True) for cells, grad in parts]
    )


def backward(layer: ConvLayer, data: ConvData) -> Arrays:
    bias_grad = data.grad_output.sum(axis=(0, 2, 3))
    return input_grad(layer, data), weight_grad(layer, data), bias_grad


def max_pool2d(layer: PoolLayer, data: PoolData) -> np.ndarray:
    x = _padded(data.x, layer.padding, -np.inf)
    return _windows(x, layer.kernel, layer.stride).max(axis=(-2, -1))


def max_pool2d_with_indices(layer: PoolLayer, data: PoolData) -> Arrays:
    windows = _windows(_padded(data.x, layer.padding, -np.inf), layer.kernel, layer.stride)
    cells = windows.reshape(*windows.shape[:4], -1)
    place = cells.argmax(axis=-1)
    first = np.arange(windows.shape[2]) * layer.stride - layer.padding
    row, column = np.divmod(place, layer.kernel)
    indices = (row + first[:, None]) * layer.size + column + first
    return np.take_along_axis(cells, place[..., None], axis=-1)[..., 0], indices


def max_pool2d_backward(layer: PoolLayer, data: PoolData, indices: np.ndarray) -> np.ndarray:
    plane = layer.size**2
    planes = np.arange(layer.batch * layer.channels).reshape(layer.batch, layer.channels, 1, 1)
    cells = (indices + planes * plane).ravel()
    grad_x = np.bincount(cells, data.grad_output.ravel(), minlength=planes.size * plane)
    return grad_x.reshape(layer.x_shape).astype(data.grad_output.dtype)


def avg_pool2d(layer: PoolLayer, data: PoolData) -> np.ndarray:
    return _windows(_padded(data.x, layer.padding), layer.kernel, layer.stride).mean(axis=(-2, -1))


def avg_pool2d_backward(layer: PoolLayer, data: PoolData) -> np.ndarray:
    share = data.grad_output / layer.kernel**2
    size = layer.size + 2 * layer.padding
    grad_x = np.zeros((layer.batch, layer.channels, size, size), share.dtype)
    windows = _windows(grad_x, layer.kernel, layer.stride)
    for r in range(layer.kernel):
        for s in range(layer.kernel):
            windows[..., r, s] += share
    return _unpadded(grad_x, layer.padding)


_CONV: dict[str, Callable[[ConvLayer, ConvData], np.ndarray | Arrays]] = {
    "forward": forward,
    "input_grad": input_grad,
    "weight_grad": weight_grad,
    "backward": backward,
}
_POOL: dict[str, Callable[[PoolLayer, PoolData], np.ndarray | Arrays]] = {
    "max_pool2d": max_pool2d,
    "max_pool2d with indices": max_pool2d_with_indices,
    "avg_pool2d": avg_pool2d,
    "avg_pool2d_backward": avg_pool2d_backward,
}


def conv(op: str, layer: ConvLayer, data: ConvData) -> np.ndarray | Arrays:
    """One of `CONV_OPERATIONS`."""
    return _CONV[op](layer, data)


def pool(op: str, layer: PoolLayer, data: PoolData, indices: np.ndarray) -> np.ndarray | Arrays:
    """One of `POOL_OPERATIONS`; only the gradient of the largest cells needs their indices."""
    if op == "max_pool2d_backward":
        return max_pool2d_backward(layer, data, indices)
    return _POOL[op](layer, data)
