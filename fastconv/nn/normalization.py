"""Batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from fastconv.algorithms.normalization import batch_norm, batch_norm_backward
from fastconv.algorithms.normalization import plain as is_plain
from fastconv.arguments import check_layout
from fastconv.nn.activations import ReLU
from fastconv.nn.layer import Array, Fused, Layer, floating_dtype, positive


class BatchNorm2d(Layer):
    """(x - mean) / sqrt(var + eps) * weight + bias, per channel of x (N, C, H, W).

    In training, mean and variance are those of the batch, and running estimates of them are
    updated; inference uses the estimates.

    Parameters
    ----------
    num_features : int
        Channels of x.
    eps : float
    momentum : float or None
        Share of the batch in the new running estimate; None averages all batches alike.
    affine : bool
        Whether to learn weight and bias.
    layout : {"NCHW", "NHWC"}
    dtype : float32 or float64

    Attributes
    ----------
    frozen : bool
        Set it to use the running estimates in training too and leave them as they are, as one does
        to fine-tune a trained network. Initially False.

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Notes
    -----
    Source: https://arxiv.org/abs/1502.03167. As in PyTorch, the batch is normalised by the biased
    variance, and the running estimate takes the unbiased one.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> layer = nn.BatchNorm2d(3)
    >>> layer.forward(np.ones((4, 3, 8, 6), np.float32), training=True).shape
    (4, 3, 8, 6)
    >>> sorted(layer.state_dict())
    ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        layout: str = "NCHW",
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        self.num_features = positive("BatchNorm2d", "num_features", num_features)
        if not eps >= 0:
            raise ValueError(f"BatchNorm2d: eps must not be negative, got {eps}")
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"BatchNorm2d: momentum must be between 0 and 1, got {momentum}")
        self.eps = float(eps)
        self.momentum = momentum
        check_layout("BatchNorm2d", layout)
        self.layout = layout
        self.frozen = False
        self._dtype = floating_dtype("BatchNorm2d", dtype)
        if affine:
            self._params["weight"] = np.ones(num_features, self._dtype)
            self._params["bias"] = np.zeros(num_features, self._dtype)
        self._buffers["running_mean"] = np.zeros(num_features, self._dtype)
        self._buffers["running_var"] = np.ones(num_features, self._dtype)
        self._buffers["num_batches_tracked"] = np.zeros((), np.int64)

    def forward(self, x: Array, training: bool = False) -> Array:
        x = self._checked(x)
        if self._is_plain(x) and not (training and self.frozen):
            return self._by_kernel(x, training, None)
        if not training:
            self._keep(False)
            return self._affine_of_running(x)
        if self.frozen:
            mean = self._buffers["running_mean"]
            inverse = 1 / np.sqrt(self._buffers["running_var"] + self.eps)
            normal = x - self._spread(mean)
        else:
            mean, var, normal = self._batch_statistics(x)
            inverse = 1 / np.sqrt(var + self.eps)
        normal *= self._spread(inverse)
        self._keep(True, normal, inverse, self.frozen)
        if not self._params:
            # not the saved array itself: the caller may write into y
            return normal.copy()
        y: Array = normal * self._spread(self._params["weight"])
        y += self._spread(self._params["bias"])
        return y

    def _is_plain(self, x: Array) -> bool:
        """Whether there is a kernel for it."""
        return self.layout == "NCHW" and is_plain(x, *self._params.values(), *self._buffers.values())

    def _by_kernel(self, x: Array, training: bool, relu: ReLU | None) -> Array:
        """The forward, and that of a ReLU behind it, in one pass over memory."""
        weight, bias = self._params.get("weight"), self._params.get("bias")
        mean, var = self._buffers["running_mean"], self._buffers["running_var"]
        if training:
            self._check_count(x)
            mean, var = np.empty_like(mean), np.empty_like(var)
        clipped = relu is not None
        y = batch_norm(x, mean, var, weight, bias, self.eps, known=not training, relu=clipped)
        self._keep(training, x, y if clipped else None, mean, var)
        if relu is not None:
            relu._keep(False)
        if training:
            self._track(mean, var, x.size // self.num_features)
        return y

    def _forward_fused(self, followers: Sequence[Layer], x: Array, training: bool) -> Fused | None:
        if not followers or type(followers[0]) is not ReLU or type(self) is not BatchNorm2d:
            return None
        x = self._checked(x)
        if not self._is_plain(x) or (training and self.frozen):
            return None
        y = self._by_kernel(x, training, followers[0])
        saved, self._saved = self._saved, None

        def backward(grad_y: Array, need_x: bool) -> Array:
            followers[0]._check_grad(grad_y, y.shape, y.dtype)
            assert saved is not None
            return self._back_by_kernel(grad_y, *saved)

        return Fused(y, 2, backward if training else None)

    def _back_by_kernel(self, grad_y: Array, x: Array, y: Array | None, mean: Array, var: Array) -> Array:
        weight = self._params.get("weight")
        grads = batch_norm_backward(grad_y, x, y, mean, var, weight, self.eps)
        if weight is not None:
            self._grads["weight"], self._grads["bias"] = grads[1:]
        return grads[0]

    def backward(self, grad_y: Array) -> Array:
        if len(self._recall()) == 4:
            x, y, mean, var = self._recall()
            self._check_grad(grad_y, x.shape, x.dtype)
            return self._back_by_kernel(grad_y, x, y, mean, var)
        normal, inverse, frozen = self._recall()
        self._check_grad(grad_y, normal.shape, normal.dtype)
        grad_weight = self._channel_dot(grad_y, normal)
        grad_bias = self._channel_sum(grad_y)
        scale = inverse
        if self._params:
            self._grads["weight"] = grad_weight
            self._grads["bias"] = grad_bias
            scale = inverse * self._params["weight"]
        grad_x: Array
        if frozen:
            grad_x = grad_y * self._spread(scale)
            return grad_x
        # mean and variance depend on x too: take out of grad_y what would have moved them
        count = normal.size // self.num_features
        grad_x = normal * self._spread(grad_weight / -count)
        grad_x += grad_y
        grad_x -= self._spread(grad_bias / count)
        grad_x *= self._spread(scale)
        return grad_x

    def _batch_statistics(self, x: Array) -> tuple[Array, Array, Array]:
        """Mean, biased variance and x - mean of the batch; the running estimates are updated."""
        count = self._check_count(x)
        mean = self._channel_sum(x) / count
        centred = x - self._spread(mean)
        var = self._channel_dot(centred, centred) / count
        self._track(mean, var, count)
        return mean, var, centred

    def _check_count(self, x: Array) -> int:
        """Values per channel."""
        count = x.size // self.num_features
        if count < 2:
            raise ValueError(
                f"{self!r}: training needs more than one value per channel to estimate a variance, "
                f"got x of shape {x.shape}"
            )
        return count

    def _track(self, mean: Array, var: Array, count: int) -> None:
        """Update the running estimates."""
        batches = self._buffers["num_batches_tracked"]
        batches += 1
        share = 1 / int(batches) if self.momentum is None else self.momentum
        for name, new in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
            running = self._buffers[name]
            running *= 1 - share
            running += share * new

    def _affine_of_running(self, x: Array) -> Array:
        """Inference: one multiplication and one addition per element."""
        scale = 1 / np.sqrt(self._buffers["running_var"] + self.eps)
        if self._params:
            scale *= self._params["weight"]
        shift = -self._buffers["running_mean"] * scale
        if self._params:
            shift += self._params["bias"]
        y: Array = x * self._spread(scale)
        y += self._spread(shift)
        return y

    def _spread(self, values: Array) -> Array:
        """A value per channel, shaped to broadcast against x."""
        return values if self.layout == "NHWC" else values[:, None, None]

    # Sums in two steps: over a row or a plane in x's own precision, then over those in float64. All
    # in float64 converts every element; all in float32 loses digits as the batch grows. einsum
    # where it is faster than sum, which is four times as slow on channels-last data.

    def _channel_sum(self, x: Array) -> Array:
        partial = np.einsum("nhwc->nhc", x) if self.layout == "NHWC" else x.sum((2, 3))
        return self._over_partial(partial, x)

    def _channel_dot(self, x: Array, y: Array) -> Array:
        formula = "nhwc,nhwc->nhc" if self.layout == "NHWC" else "nchw,nchw->nc"
        return self._over_partial(np.einsum(formula, x, y), x)

    def _over_partial(self, partial: Array, x: Array) -> Array:
        axes = tuple(range(partial.ndim - 1))
        total: Array = partial.sum(axes, dtype=np.float64).astype(x.dtype)
        return total

    def _checked(self, x: Array) -> Array:
        x = self._floating(x)
        if x.dtype != self._dtype:
            raise TypeError(f"{self!r}: x is {x.dtype}, but the parameters are {self._dtype}")
        axis = -1 if self.layout == "NHWC" else 1
        if x.ndim != 4 or x.shape[axis] != self.num_features:
            raise ValueError(
                f"{self!r}: x must have 4 axes and {self.num_features} channels on axis {axis}, "
                f"got shape {x.shape}"
            )
        return x

    def _describe(self) -> str:
        text = str(self.num_features)
        for name, plain in (("eps", 1e-5), ("momentum", 0.1), ("layout", "NCHW")):
            value = getattr(self, name)
            if value != plain:
                text += f", {name}={value!r}"
        return text if self._params else f"{text}, affine=False"
