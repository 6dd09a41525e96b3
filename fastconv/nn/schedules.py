"""Learning rates that change from step to step: `step()` after each of the optimiser's.

Names, arguments and values are those of torch.optim.lr_scheduler.
"""

from __future__ import annotations

from math import cos, pi

from fastconv.nn.layer import positive
from fastconv.nn.optim import Optimizer


class Schedule:
    """Sets an optimiser's learning rate; a subclass says what it is after some steps.

    Attributes
    ----------
    optimizer : Optimizer
    steps : int
        How many steps were taken.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> schedule = nn.CosineAnnealingLR(nn.SGD(nn.Linear(2, 1), lr=1.0), T_max=2)  # a subclass
    >>> schedule.step()
    >>> round(schedule.optimizer.lr, 3)
    0.5
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__}: optimizer must be an Optimizer, got {optimizer!r}")
        self.optimizer = optimizer
        self.steps = 0

    def rate(self, steps: int) -> float:
        """The learning rate after that many steps."""
        raise NotImplementedError(f"{type(self).__name__} must define rate")

    def step(self) -> None:
        """One step further."""
        self.steps += 1
        self.optimizer.lr = self.rate(self.steps)


def _between(start: float, end: float, share: float) -> float:
    """From start to end along half a wave of the cosine."""
    return end + (start - end) / 2 * (1 + cos(pi * share))


class CosineAnnealingLR(Schedule):
    """From the optimiser's rate down to `eta_min` in `T_max` steps, along half a wave of the cosine.

    Parameters
    ----------
    optimizer : Optimizer
    T_max : int
        Steps until the lowest rate; beyond them it rises again.
    eta_min : float
        The lowest rate.

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Notes
    -----
    Source: https://arxiv.org/abs/1608.03983

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> optimizer = nn.SGD(nn.Linear(2, 1), lr=1.0)
    >>> schedule = nn.CosineAnnealingLR(optimizer, T_max=4)
    >>> for _ in range(4):
    ...     schedule.step()
    ...     print(round(optimizer.lr, 3))
    0.854
    0.5
    0.146
    0.0
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0) -> None:
        super().__init__(optimizer)
        self.T_max = positive("CosineAnnealingLR", "T_max", T_max)
        self.eta_min = float(eta_min)
        self._start = optimizer.lr

    def rate(self, steps: int) -> float:
        return _between(self._start, self.eta_min, steps / self.T_max)


class OneCycleLR(Schedule):
    """From a low rate up to `max_lr` and down to almost nothing, in `total_steps` steps.

    Parameters
    ----------
    optimizer : Optimizer
        Its rate is set when the schedule is made.
    max_lr : float
    total_steps : int
        Of the whole training.
    pct_start : float
        The share of the steps in which the rate rises.
    div_factor, final_div_factor : float
        The first rate is max_lr / div_factor, the last that divided by final_div_factor.

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Notes
    -----
    Source: https://arxiv.org/abs/1708.07120. Both ways along half a wave of the cosine, as in PyTorch, whose
    cycling of the momentum is left out.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> optimizer = nn.SGD(nn.Linear(2, 1))
    >>> schedule = nn.OneCycleLR(optimizer, max_lr=1.0, total_steps=11)
    >>> round(optimizer.lr, 3)
    0.04
    >>> for _ in range(10):
    ...     schedule.step()
    >>> optimizer.lr < 1e-5
    True
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25,
        final_div_factor: float = 1e4,
    ) -> None:
        super().__init__(optimizer)
        self.total_steps = positive("OneCycleLR", "total_steps", total_steps)
        if not 0 <= pct_start <= 1:
            raise ValueError(f"OneCycleLR: pct_start must be between 0 and 1, got {pct_start}")
        for name, value in (
            ("max_lr", max_lr),
            ("div_factor", div_factor),
            ("final_div_factor", final_div_factor),
        ):
            if not value > 0:
                raise ValueError(f"OneCycleLR: {name} must be positive, got {value}")
        self.max_lr = float(max_lr)
        self._top = pct_start * total_steps - 1
        self._first = max_lr / div_factor
        self._last = self._first / final_div_factor
        optimizer.lr = self.rate(0)

    def rate(self, steps: int) -> float:
        if steps > self.total_steps:
            raise ValueError(f"OneCycleLR: {steps} steps were taken, total_steps is {self.total_steps}")
        # the rate of the last step, which is also left behind
        end = self.total_steps - 1
        steps = min(steps, end)
        if steps <= self._top:
            if self._top == 0:
                return self.max_lr
            return _between(self._first, self.max_lr, steps / self._top)
        return _between(self.max_lr, self._last, (steps - self._top) / (end - self._top))
