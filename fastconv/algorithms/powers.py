"""Powers of arrays, as power-average pooling needs them."""

from __future__ import annotations

import numpy as np


def power(x: np.ndarray, exponent: float) -> np.ndarray:
    """x ** exponent in the dtype of x, as IEEE arithmetic has it; x itself where the exponent is 1.

    Products, roots and reciprocals take a tenth of the time of NumPy's power.
    """
    with np.errstate(all="ignore"):
        if exponent == 1:
            return x
        if exponent in (2, 3, 4):
            square = np.square(x)
            other = {2: None, 3: x, 4: square}[int(exponent)]
            y = square if other is None else square * other
        elif exponent == 0.5:
            y = np.sqrt(x)
        elif exponent == -1:
            y = np.reciprocal(x)
        else:
            y = np.power(x, x.dtype.type(exponent))
        return np.asarray(y)
