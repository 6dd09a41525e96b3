"""Convolution and pooling of dask arrays; in work."""
from fastconv.dask.conv import *
from fastconv.dask.conv_grads import *
