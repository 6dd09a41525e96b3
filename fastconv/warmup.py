"""Compile ahead of the first call, and tell what is in use."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable

import llvmlite
import numba
import numpy as np

from fastconv import functional as F
from fastconv import jit, threads
from fastconv.algorithms.elementwise import relu
from fastconv.algorithms.losses import cross_entropy
from fastconv.algorithms.normalization import batch_norm, batch_norm_backward, plain
from fastconv.algorithms.products import times, times_transposed
from fastconv.algorithms.updates import ADAM, update
from fastconv.arguments import shown
from fastconv.functional.blocks import conv_block, conv_block_backward
from fastconv.kernels import weight_gradient, winograd, winograd_gradient
from fastconv.kernels.simd import REGISTER_BYTES
from fastconv.version import __version__

__all__ = ["show_config", "warmup"]


def _conv(dtype: np.dtype) -> None:
    def run(channels: int, groups: int, stride: int, algorithm: str) -> None:
        x = np.ones((1, channels, 6, 6), dtype)
        weight = np.ones((channels, channels // groups, 3, 3), dtype)
        y = F.conv2d(x, weight, weight[:, 0, 0, 0], stride, groups=groups, algorithm=algorithm)
        F.conv2d_backward(y, x, weight, stride, groups=groups, algorithm=algorithm)

    for stride in (1, 2):
        run(2, 2, stride, "auto")  # depthwise
        for channels in (1, 2, 4, 8):  # the tiles of direct convolution
            run(channels, 1, stride, "auto")
        if not jit.DISABLED:
            run(2, 1, stride, "gemm")
    # a batch of whole images has a way of its own
    x, weight = np.ones((8, 2, 20, 20), dtype), np.ones((2, 2, 3, 3), dtype)
    y = F.conv2d(x, weight)
    F.conv2d_backward(y, x, weight)
    if not jit.DISABLED:
        # which of them a convolution needs depends on its size
        for kernels in (winograd.PACK_WEIGHT, winograd.TRANSFORM_INPUT, winograd.FORWARD):
            for kernel in kernels.values():
                assert kernel.task(dtype).address
        for kernel in (*winograd_gradient.KERNELS, weight_gradient.finish_weight):
            assert kernel.task(dtype).address


def _max_pool(dtype: np.dtype) -> None:
    x = np.ones((1, 2, 6, 6), dtype)
    F.max_pool2d(x, 2)
    y, indices = F.max_pool2d(x, 2, return_indices=True)
    F.max_pool2d_backward(y, indices, x.shape)


def _max_unpool(dtype: np.dtype) -> None:
    x = np.ones((1, 2, 3, 3), dtype)
    indices = np.zeros(x.shape, np.int64)
    F.max_unpool2d_backward(F.max_unpool2d(x, indices, 2), indices)


def _avg_pool(dtype: np.dtype) -> None:
    x = np.ones((1, 2, 6, 6), dtype)
    F.avg_pool2d_backward(F.avg_pool2d(x, 2), x.shape, 2)


def _adaptive_pool(dtype: np.dtype) -> None:
    x = np.ones((1, 2, 6, 6), dtype)
    F.adaptive_avg_pool2d_backward(F.adaptive_avg_pool2d(x, 4), x.shape)
    F.adaptive_max_pool2d(x, 4)


def _conv_integer(dtype: np.dtype) -> None:
    """One kernel serves all integers, whatever the dtype here."""
    x, weight = np.ones((1, 2, 6, 6), np.uint8), np.ones((2, 2, 3, 3), np.int8)
    F.qlinear_conv(x, 1, 0, weight, 1, 0, 1, np.uint8(0))


def _deform_conv(dtype: np.dtype) -> None:
    offset = np.zeros((1, 18, 4, 4), dtype)
    F.deform_conv2d(np.ones((1, 2, 6, 6), dtype), offset, np.ones((2, 2, 3, 3), dtype))


def _training(dtype: np.dtype) -> None:
    """What `fastconv.nn` needs besides."""
    x, weight = np.ones((8, 2, 20, 20), dtype), np.ones((2, 2, 3, 3), dtype)
    block = conv_block(x, weight, None, (1, 0, 1, 1), True, True)
    if block is not None and block[1] is not None:
        conv_block_backward(block[0], x, weight, block[1], block[2], (True, True, True))
    mean = np.ones(2, dtype)
    y = batch_norm(x, mean, mean, mean, mean, 1e-5, known=False, relu=False) if plain(x) else x
    if plain(x):
        batch_norm_backward(y, x, None, mean, mean, mean, 1e-5)
    matrix = np.ones((128, 128), dtype)
    times_transposed(matrix, matrix, None, False)
    times(matrix, matrix)
    relu(matrix)
    cross_entropy(matrix, np.zeros(128, np.int64))
    update(ADAM, [(matrix,) * 4], (0,) * 7)


_OPS: dict[str, Callable[[np.dtype], None]] = {
    "conv": _conv,
    "max_pool": _max_pool,
    "max_unpool": _max_unpool,
    "avg_pool": _avg_pool,
    "adaptive_pool": _adaptive_pool,
    "conv_integer": _conv_integer,
    "deform_conv": _deform_conv,
    "training": _training,
}


def warmup(dtypes: Iterable[str] = ("float32",), ops: Iterable[str] | None = None) -> None:
    """Compile the kernels now rather than in the first call that needs each; the result is kept on disk.

    Parameters
    ----------
    dtypes : iterable of "float32" and "float64"
        float16 and bfloat16 are computed in float32.
    ops : iterable of str, optional
        Of "conv", "max_pool", "max_unpool", "avg_pool", which serves power averages, too, "adaptive_pool",
        every rank at once, "conv_integer" and "deform_conv", and "training", which is what `fastconv.nn`
        needs besides; None means all.

    Raises
    ------
    ValueError
        For another dtype or operation.

    Examples
    --------
    >>> warmup(dtypes=["float64"], ops=["max_pool"])
    """
    names = list(_OPS) if ops is None else _names("ops", ops, _OPS)
    for dtype in _names("dtypes", dtypes, ("float32", "float64")):
        for name in names:
            _OPS[name](np.dtype(dtype))
    threads.start()


def _names(argument: str, value: Iterable[str], known: Collection[str]) -> list[str]:
    """The entries of an argument, which must all be known."""
    rule = f"warmup: {argument} are {', '.join(map(repr, known))}, got"
    try:
        names = list(value)
    except TypeError:
        raise TypeError(f"{rule} {shown(value)}") from None
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"{rule} {shown(name)}")
    return names


def show_config() -> None:
    """Print the versions, the vector width, threads and threading layer, and the cache folder in use.

    Examples
    --------
    >>> show_config()  # doctest: +ELLIPSIS
    fastconv ...
    """
    threads.start()
    layer = "none (no compiler)" if jit.DISABLED else numba.threading_layer()
    print(f"fastconv         {__version__}")
    print(f"Python           {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"NumPy            {np.__version__}")
    print(f"Numba            {numba.__version__} (llvmlite {llvmlite.__version__})")
    print(f"CPU              {numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name()}")
    print(f"vector registers {8 * REGISTER_BYTES} bits")
    print(f"threads          {threads.get_num_threads()} of {numba.config.NUMBA_NUM_THREADS}")
    print(f"threading layer  {layer}")
    print(f"compiler         {'off: NUMBA_DISABLE_JIT is set' if jit.DISABLED else 'on'}")
    print(f"kernel cache     {jit.CACHE_FOLDER or 'none: kernels are compiled in every process'}")
