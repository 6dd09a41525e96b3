"""What is done to an output block after the sums: bias and activation."""

from __future__ import annotations

import numpy as np


def finish(y: np.ndarray, bias: np.ndarray | None, relu: bool) -> None:
    """Add `bias`, shaped to broadcast against `y`, and clip at 0, in place. NaN stays NaN."""
    if bias is not None:
        y += bias
    if relu:
        np.maximum(y, 0, out=y)
