"""Convolution and pooling of dask arrays, chunked along the batch and along space.

An image larger than memory is filtered chunk by chunk; a batch is spread over the workers of a cluster. The
functions are those of `fastconv`, with the same names, arguments and errors; they return dask arrays, and
compute nothing themselves. `fit` trains a network of `fastconv.nn` on a cluster.

>>> import dask.array as da, numpy as np
>>> from fastconv.dask import conv2d
>>> image = da.zeros((1, 1, 40_000, 40_000), chunks=(1, 1, 4000, 4000), dtype="f4")
>>> y = conv2d(image, np.ones((8, 1, 3, 3), "f4"), padding="same")
>>> y.shape, y.numblocks
((1, 8, 40000, 40000), (1, 1, 10, 10))
"""

from fastconv.dask.conv import *
from fastconv.dask.conv_grads import *
from fastconv.dask.pool import *
from fastconv.dask.training import *
