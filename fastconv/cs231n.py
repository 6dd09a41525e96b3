"""The fast layers of Stanford's course CS231n, without its Cython extension or any compiler.

In ``cs231n/layer_utils.py`` and the notebooks it is enough to replace ``from .fast_layers import *`` by::

    from fastconv.cs231n import *

Names, arguments and results are those of the course's ``fast_layers.py``, and `cache` is what its naive
versions are to keep: ``(x, w, b, conv_param)`` and ``(x, pool_param)``. So a forward pass of these and a
backward pass of one's own go together, and the other way round.

As in the course any real dtypes will do. Where NumPy makes float32 of them that is what is computed in, else
float64, as with a mixture of the two. A gradient has the dtype of what it is the gradient of.

Where several cells of a pooling window are the largest, the first of them gets the gradient, as by
``numpy.argmax``. The course's own fast version, for windows that tile the image, sends it to all of them,
which is the derivative of nothing; it says so, and that ties are rare, but behind a ReLU zeros tie in every
other window.

References
----------
https://cs231n.github.io, assignment 2, "Convolutional Networks".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import functional as F

__all__ = [
    "col2im_indices",
    "conv_backward_fast",
    "conv_backward_im2col",
    "conv_backward_strides",
    "conv_forward_fast",
    "conv_forward_im2col",
    "conv_forward_strides",
    "conv_relu_backward",
    "conv_relu_forward",
    "conv_relu_pool_backward",
    "conv_relu_pool_forward",
    "im2col_indices",
    "max_pool_backward_fast",
    "max_pool_backward_im2col",
    "max_pool_forward_fast",
    "max_pool_forward_im2col",
]

Array = Any
Param = dict[str, Any]


class PoolCache(tuple[Any, ...]):
    """``(x, pool_param)``, and besides where the largest cells are, for those who know to ask."""

    indices: Array


def _computed_in(function: str, *arrays: Any) -> np.dtype[Any]:
    """float32 where NumPy would make that of the arrays, else float64."""
    dtype = np.result_type(*arrays)
    if dtype.kind not in "fiub":
        raise TypeError(f"{function}: the arrays must hold real numbers, got {dtype}")
    return np.dtype(np.float32 if dtype in (np.float32, np.float16) else np.float64)


def _as(array: Array, dtype: Any) -> Array:
    return np.asarray(array, dtype)


def _like(gradient: Array, of: Array) -> Array:
    """A gradient in the dtype of what it is the gradient of, where that is a floating one."""
    dtype = np.asarray(of).dtype
    return gradient.astype(dtype, copy=False) if dtype.kind == "f" else gradient


def conv_forward_fast(x: Array, w: Array, b: Array, conv_param: Param) -> tuple[Array, tuple[Any, ...]]:
    """Convolution, with zeros around x.

    Parameters
    ----------
    x : ndarray, (N, C, H, W)
    w : ndarray, (F, C, HH, WW)
    b : ndarray, (F,)
    conv_param : dict
        ``"stride"``: cells from window to window; ``"pad"``: zeros on each side of x.

    Returns
    -------
    out : ndarray, (N, F, H', W')
        H' = 1 + (H + 2 * pad - HH) // stride, and so W'. Where the windows do not end at the border the rest
        is left out, as by the naive version; the course's fast one refuses that.
    cache : tuple
        (x, w, b, conv_param)

    Raises
    ------
    ValueError, TypeError
        Shapes that do not fit together, or an entry of `conv_param` that is no int.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4)
    >>> out, cache = conv_forward_fast(x, w, b, {"stride": 1, "pad": 1})
    >>> out.shape
    (2, 4, 8, 8)
    >>> dx, dw, db = conv_backward_fast(np.ones_like(out), cache)
    >>> dx.shape, dw.shape, db.shape
    ((2, 3, 8, 8), (4, 3, 3, 3), (4,))
    """
    return _conv("conv_forward_fast", x, w, b, conv_param, None), (x, w, b, conv_param)


def conv_backward_fast(dout: Array, cache: tuple[Any, ...]) -> tuple[Array, Array, Array]:
    """Gradients of the convolution.

    Parameters
    ----------
    dout : ndarray, the shape of out
    cache : tuple
        (x, w, b, conv_param); what follows is ignored.

    Returns
    -------
    dx, dw, db : ndarray
        Each the shape of what it is the gradient of.

    Raises
    ------
    ValueError, TypeError
        If `dout` is not of the shape of out.
    """
    x, w, b, conv_param = cache[:4]
    dtype = _computed_in("conv_backward_fast", dout, x, w)
    grads = F.conv2d_backward(
        _as(dout, dtype), _as(x, dtype), _as(w, dtype), conv_param["stride"], conv_param["pad"]
    )
    return _like(grads.x, x), _like(grads.weight, w), _like(grads.bias, b)


def _conv(function: str, x: Array, w: Array, b: Array, conv_param: Param, activation: str | None) -> Array:
    dtype = _computed_in(function, x, w, b)
    stride, pad = conv_param["stride"], conv_param["pad"]
    return F.conv2d(_as(x, dtype), _as(w, dtype), _as(b, dtype), stride, pad, activation=activation)


def max_pool_forward_fast(x: Array, pool_param: Param) -> tuple[Array, PoolCache]:
    """The largest cell of each window.

    Parameters
    ----------
    x : ndarray, (N, C, H, W)
    pool_param : dict
        ``"pool_height"``, ``"pool_width"``: of the window; ``"stride"``: cells from window to window.

    Returns
    -------
    out : ndarray, (N, C, H', W')
        H' = 1 + (H - pool_height) // stride, and so W'.
    cache : tuple
        (x, pool_param)

    Raises
    ------
    ValueError, TypeError
        A window larger than x, or an entry of `pool_param` that is no int.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = max_pool_forward_fast(
    ...     np.zeros((1, 1, 2, 2)), {"pool_height": 2, "pool_width": 2, "stride": 2}
    ... )
    >>> max_pool_backward_fast(np.ones_like(out), cache)
    array([[[[1., 0.],
             [0., 0.]]]])
    """
    plain = _as(x, _computed_in("max_pool_forward_fast", x))
    window = (pool_param["pool_height"], pool_param["pool_width"])
    out, indices = F.max_pool2d(plain, window, pool_param["stride"], return_indices=True)
    cache = PoolCache((x, pool_param))
    cache.indices = indices
    return out, cache


def max_pool_backward_fast(dout: Array, cache: tuple[Any, ...]) -> Array:
    """Gradient of the pooling: each entry of `dout` goes to the first of the largest cells of its window.

    Parameters
    ----------
    dout : ndarray, the shape of out
    cache : tuple
        (x, pool_param), by whatever forward pass.

    Returns
    -------
    dx : ndarray, the shape of x

    Raises
    ------
    ValueError, TypeError
        If `dout` is not of the shape of out.
    """
    x, pool_param = cache[:2]
    if not isinstance(cache, PoolCache):
        cache = max_pool_forward_fast(x, pool_param)[1]
    dtype = _computed_in("max_pool_backward_fast", dout, x)
    return _like(F.max_pool2d_backward(_as(dout, dtype), cache.indices, np.shape(x)), x)


# --- layers in a row, as in the course's layer_utils.py -------------------------------------------


def conv_relu_forward(x: Array, w: Array, b: Array, conv_param: Param) -> tuple[Array, tuple[Any, ...]]:
    """A convolution and a ReLU, in one go.

    Returns
    -------
    out : ndarray
    cache : tuple
        The convolution's, and the ReLU's: what it is called with, of which here nothing is left but its sign.
    """
    out = _conv("conv_relu_forward", x, w, b, conv_param, "relu")
    return out, ((x, w, b, conv_param), out)


def conv_relu_backward(dout: Array, cache: tuple[Any, ...]) -> tuple[Array, Array, Array]:
    """Gradients of `conv_relu_forward`: dx, dw, db."""
    conv_cache, relu_cache = cache
    return conv_backward_fast(dout * (relu_cache > 0), conv_cache)


def conv_relu_pool_forward(
    x: Array, w: Array, b: Array, conv_param: Param, pool_param: Param
) -> tuple[Array, tuple[Any, ...]]:
    """A convolution, a ReLU and max pooling.

    Returns
    -------
    out : ndarray
    cache : tuple
        The convolution's, the ReLU's and the pooling's.
    """
    hidden, (conv_cache, relu_cache) = conv_relu_forward(x, w, b, conv_param)
    out, pool_cache = max_pool_forward_fast(hidden, pool_param)
    return out, (conv_cache, relu_cache, pool_cache)


def conv_relu_pool_backward(dout: Array, cache: tuple[Any, ...]) -> tuple[Array, Array, Array]:
    """Gradients of `conv_relu_pool_forward`: dx, dw, db."""
    conv_cache, relu_cache, pool_cache = cache
    return conv_relu_backward(max_pool_backward_fast(dout, pool_cache), (conv_cache, relu_cache))


# --- the lowered matrix, as in the course's im2col.py ----------------------------------------------


def im2col_indices(x: Array, field_height: int, field_width: int, padding: int = 1, stride: int = 1) -> Array:
    """The windows of x (N, C, H, W) as the columns of one matrix.

    Returns
    -------
    cols : ndarray, (C * field_height * field_width, windows * N)
        All images' first windows, then all their second ones, and so on.

    Examples
    --------
    >>> import numpy as np
    >>> im2col_indices(np.ones((2, 3, 4, 4)), 3, 3, padding=1, stride=1).shape
    (27, 32)
    """
    plain = _as(x, _computed_in("im2col_indices", x))
    cols = F.im2col(plain, (field_height, field_width), 1, padding, stride)
    return cols.transpose(1, 2, 0).reshape(cols.shape[1], -1)


def col2im_indices(
    cols: Array,
    x_shape: tuple[int, ...],
    field_height: int = 3,
    field_width: int = 3,
    padding: int = 1,
    stride: int = 1,
) -> Array:
    """The adjoint of `im2col_indices`: every entry is added to the cell of x that it was read from.

    Returns
    -------
    x : ndarray of shape `x_shape`

    Raises
    ------
    ValueError
        If `cols` is not of the shape that an x of `x_shape` has.
    """
    images, _, height, width = x_shape
    plain = _as(cols, _computed_in("col2im_indices", cols))
    if images == 0 and plain.size == 0:
        return np.zeros(x_shape, plain.dtype)
    if plain.ndim != 2 or images < 1 or plain.shape[1] % images:
        raise ValueError(
            f"col2im_indices: cols must have shape (C * {field_height} * {field_width}, windows * {images}), "
            f"got {plain.shape}"
        )
    windows = plain.reshape(len(plain), plain.shape[1] // images, images)
    size = (height, width)
    x = F.col2im(windows.transpose(2, 0, 1), size, (field_height, field_width), 1, padding, stride)
    if x.shape != tuple(x_shape):
        raise ValueError(f"col2im_indices: cols is that of an x of shape {x.shape}, not {tuple(x_shape)}")
    return x


# the course has several ways to the same results, of which `_fast` is the best
conv_forward_im2col = conv_forward_strides = conv_forward_fast
conv_backward_im2col = conv_backward_strides = conv_backward_fast
max_pool_forward_im2col = max_pool_forward_fast
max_pool_backward_im2col = max_pool_backward_fast
