"""Batch normalisation; see `fastconv.kernels.normalization`. For arrays that a layer has checked."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fastconv.jit import DISABLED, address_of
from fastconv.kernels import normalization as kernels
from fastconv.threads import Prepared, task_count


def _at(array: np.ndarray | None) -> int:
    return 0 if array is None else address_of(array)


def plain(*arrays: np.ndarray | None) -> bool:
    """Whether the kernels can read these."""
    every = [array for array in arrays if array is not None]
    return not DISABLED and all(a.flags.c_contiguous and a.flags.aligned and a.size for a in every)


@lru_cache(maxsize=256)
def _prepare(back: bool, dtype: np.dtype, shape: tuple[int, ...], known: bool, relu: bool) -> Prepared:
    images, channels, height, width = shape
    sizes = {"images": images, "channels": channels, "pixels": height * width}
    tasks = task_count(images * channels * height * width, channels)
    if back:
        names = "grad_output x y means variances weight grad_x grad_weight grad_bias numbers"
        return Prepared(kernels.backward, dtype, tasks, names, **sizes)
    names = "x y means variances weight bias numbers"
    return Prepared(kernels.forward, dtype, tasks, names, known=int(known), relu=int(relu), **sizes)


def batch_norm(
    x: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    *,
    known: bool,
    relu: bool,
) -> np.ndarray:
    """(x - mean) / sqrt(var + eps) * weight + bias, no less than 0 with `relu`; x is (N, C, H, W).

    Unless they are `known`, mean and the biased variance are those of x, and are written to the arrays.
    """
    y, numbers = np.empty_like(x), np.array([eps], np.float64)
    run = _prepare(False, x.dtype, x.shape, known, relu)
    arrays = (x, y, mean, var, weight, bias, numbers)
    run.run(*map(_at, arrays))
    return y


def batch_norm_backward(
    grad_output: np.ndarray,
    x: np.ndarray,
    y: np.ndarray | None,
    mean: np.ndarray,
    var: np.ndarray,
    weight: np.ndarray | None,
    eps: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of x, weight and bias, where mean and var are those of x; with a ReLU, y is its output."""
    numbers = np.array([eps], np.float64)
    grad_x, grad_weight, grad_bias = np.empty_like(x), np.empty_like(mean), np.empty_like(mean)
    run = _prepare(True, x.dtype, x.shape, False, False)
    grad_output = np.ascontiguousarray(grad_output)
    arrays = (grad_output, x, y, mean, var, weight, grad_x, grad_weight, grad_bias, numbers)
    run.run(*map(_at, arrays))
    return grad_x, grad_weight, grad_bias
