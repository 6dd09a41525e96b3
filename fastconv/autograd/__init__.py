"""The functions of fastconv for HIPS autograd: ``autograd.grad`` goes through them, any number of times.

>>> import autograd.numpy as np
>>> from autograd import grad
>>> from fastconv.autograd import conv2d, max_pool2d
>>> def loss(weight, x):
...     return np.sum(np.tanh(max_pool2d(conv2d(x, weight, padding="same"), 2)) ** 2)
>>> grad(loss)(np.ones((4, 3, 3, 3)), np.ones((2, 3, 8, 8))).shape
(4, 3, 3, 3)

Names and arguments are those of fastconv, but for `out`: nothing that is differentiated may be written to.
A convolution is bilinear in x and weight, and its two gradients are bilinear again, each the derivative of
the others; so three primitives, closed under differentiation, are all that first, second and higher
derivatives of every convolution need, in reverse and in forward mode. Average pooling, `im2col` and the
choice that max pooling has made are linear: a map and its adjoint, each the derivative of the other.
Derivatives of `lp_pool` are made of these and of powers.

All arrays of a call have one dtype, as in fastconv; what comes back in reverse is brought to it.
"""

from fastconv.autograd.bilinear import *
from fastconv.autograd.linear import *
from fastconv.autograd.lp_pool import *

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "col2im",
    "conv1d",
    "conv1d_input_grad",
    "conv1d_weight_grad",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv3d",
    "conv3d_input_grad",
    "conv3d_weight_grad",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "im2col",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
]
