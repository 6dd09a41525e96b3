"""Convolution and pooling for NumPy arrays, forward and backward, as fast as the CPU allows."""

from fastconv import functional
from fastconv.algorithms import ALGORITHMS, POOL_ALGORITHMS
from fastconv.functional import *
from fastconv.plan import Plan
from fastconv.threads import get_num_threads, num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = ["ALGORITHMS", "POOL_ALGORITHMS", "Plan", "get_num_threads", "num_threads", "set_num_threads"]
__all__ += functional.__all__
