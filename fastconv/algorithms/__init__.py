"""The ways of computing: one file each, and the registries that make them known.

An algorithm that is registered here can be named by the user, is considered by "auto" in this order,
is printed by `explain`, and is run by the property tests and the benchmarks.
"""

from __future__ import annotations

from fastconv.algorithms.auto import Auto
from fastconv.algorithms.base import OPERATIONS, Algorithm, PoolAlgorithm
from fastconv.algorithms.depthwise import Depthwise
from fastconv.algorithms.direct import Direct
from fastconv.algorithms.gemm import Gemm
from fastconv.algorithms.im2col import Im2col, Im2colPool
from fastconv.algorithms.naive import Naive, NaivePool
from fastconv.algorithms.pooling import DirectPool
from fastconv.algorithms.shift import Shift
from fastconv.algorithms.winograd import Winograd

__all__ = ["ALGORITHMS", "OPERATIONS", "POOL_ALGORITHMS", "Algorithm", "Auto", "PoolAlgorithm"]

_CONV = (Depthwise(), Winograd(), Direct(), Shift(), Gemm(), Im2col(), Naive())
_POOL = (DirectPool(), Im2colPool(), NaivePool())

#: Convolution algorithms by name, the preferred first.
ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in (Auto(*_CONV), *_CONV)}

#: Pooling algorithms by name; "auto" is the first.
POOL_ALGORITHMS: dict[str, PoolAlgorithm] = {"auto": _POOL[0], **{a.name: a for a in _POOL}}
