"""`fit`: the training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastconv.nn.layer import Array, Layer, positive
from fastconv.nn.losses import Loss
from fastconv.nn.optim import Optimizer
from fastconv.nn.schedules import Schedule


@dataclass
class History:
    """What `fit` saw, one entry per epoch.

    Attributes
    ----------
    loss, accuracy : list of float
        Means over the training samples, each as it was when its batch was trained on: dropout
        active, and the parameters improving meanwhile.
    val_loss, val_accuracy : list of float
        Means over the validation samples, after the epoch; empty without validation.
    seconds : list of float
        Time that each epoch took, its validation included.

    Notes
    -----
    The accuracies are empty where the targets are not one integer class per sample.

    Examples
    --------
    >>> History(loss=[0.7, 0.4]).loss[-1]
    0.4
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def fit(
    net: Layer,
    x: Array,
    labels: Array,
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    validation: tuple[Array, Array] | None = None,
    seed: int | np.random.Generator | None = None,
    progress: bool = False,
    augment: Callable[[Array, np.random.Generator], Array] | None = None,
    schedule: Schedule | None = None,
    on_epoch: Callable[[History], object] | None = None,
) -> History:
    """Train a network, in a new random order each epoch; a last, smaller batch is trained on too.

    With a seed here and seeded layers, two runs give the same bits.

    Parameters
    ----------
    net : Layer
    x : array (N, ...)
        Of the dtype of the network.
    labels : array (N, ...)
        What `loss` takes as target.
    loss : Loss
    optimizer : Optimizer
        Made for `net`.
    epochs, batch_size : int
    validation : (x, labels), optional
        Samples to measure after each epoch.
    seed : None, int or numpy.random.Generator
        Of the order of the samples.
    progress : bool
        Show a bar; needs tqdm.
    augment : callable, optional
        Called with the samples of each training batch and a generator: makes others of them, as
        `RandomAffine` does.
    schedule : Schedule, optional
        Of the optimiser's learning rate; takes a step after each batch.
    on_epoch : callable, optional
        Called with the history so far after each epoch: to print it, to set ``optimizer.lr``.

    Returns
    -------
    History

    Raises
    ------
    ValueError, TypeError
        Where the samples and labels do not fit together, before anything has changed.
    ImportError
        Where `progress` is asked for and tqdm is missing.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> x = np.random.default_rng(0).standard_normal((20, 3), np.float32)
    >>> net = nn.Linear(3, 2, rng=0)
    >>> history = nn.fit(net, x, (x[:, 0] > 0).astype(int), loss=nn.CrossEntropy(),
    ...                  optimizer=nn.Adam(net), epochs=2, batch_size=8, seed=0)
    >>> len(history.loss), history.val_loss
    (2, [])
    """
    positive("fit", "epochs", epochs)
    positive("fit", "batch_size", batch_size)
    x, labels = _check_samples("x", x, labels)
    if validation is not None:
        if len(validation) != 2:
            raise ValueError(f"fit: validation must be (x, labels), got {len(validation)} items")
        validation = _check_samples("validation x", *validation)
    if optimizer.net is not net:
        raise ValueError("fit: the optimizer was made for another network than the one to train")
    if schedule is not None and schedule.optimizer is not optimizer:
        raise ValueError("fit: the schedule was made for another optimizer")
    tqdm = _tqdm() if progress else None

    rng = np.random.default_rng(seed)
    history = History()
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        total = _Mean()
        bar = tqdm and tqdm(
            total=len(x),
            desc=f"epoch {epoch}/{epochs}",
            unit=" samples",
            leave=on_epoch is None,
        )
        try:
            order = rng.permutation(len(x))
            for first in range(0, len(x), batch_size):
                batch = order[first : first + batch_size]
                target = labels[batch]
                samples = x[batch] if augment is None else augment(x[batch], rng)
                pred = net.forward(samples, training=True)
                total.add(loss.forward(pred, target), pred, target)
                net.backward_params(loss.backward())
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                if bar:
                    bar.set_postfix(total.figures(), refresh=False)
                    bar.update(len(batch))
            _record(total, history.loss, history.accuracy)
            if validation is not None:
                total = _evaluate(net, *validation, loss, max(batch_size, 256))
                _record(total, history.val_loss, history.val_accuracy)
                if bar:
                    bar.set_postfix({f"val_{k}": v for k, v in total.figures().items()})
        finally:
            if bar:
                bar.close()
        history.seconds.append(time.perf_counter() - start)
        if on_epoch is not None:
            on_epoch(history)
    return history


def _check_samples(name: str, x: Any, labels: Any) -> tuple[Array, Array]:
    if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64):
        kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"fit: {name} must be a float32 or float64 array, got {kind}")
    labels = np.asarray(labels)
    if x.ndim < 1 or labels.ndim < 1 or len(x) != len(labels):
        raise ValueError(
            f"fit: {name} and its labels must have as many samples, got shapes {x.shape} and {labels.shape}"
        )
    if len(x) == 0:
        raise ValueError(f"fit: {name} has no samples")
    return x, labels


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            'fit with progress=True needs the package tqdm: pip install "fastconv[nn]"'
        ) from error
    return tqdm


class _Mean:
    """Loss and accuracy over batches of different sizes."""

    def __init__(self) -> None:
        self.samples = 0
        self.loss = 0.0
        self.correct = 0
        self.classes = True

    def add(self, value: float, pred: Array, target: Array) -> None:
        self.samples += len(pred)
        self.loss += value * len(pred)
        self.classes = pred.ndim == 2 and target.ndim == 1 and target.dtype.kind in "iu"
        if self.classes:
            self.correct += int(np.count_nonzero(pred.argmax(1) == target))

    def figures(self) -> dict[str, float]:
        result = {"loss": self.loss / self.samples}
        if self.classes:
            result["accuracy"] = self.correct / self.samples
        return result


def _record(mean: _Mean, losses: list[float], accuracies: list[float]) -> None:
    figures = mean.figures()
    losses.append(figures["loss"])
    if "accuracy" in figures:
        accuracies.append(figures["accuracy"])


def _evaluate(net: Layer, x: Array, labels: Array, loss: Loss, batch_size: int) -> _Mean:
    """Inference over all of x, a batch at a time."""
    mean = _Mean()
    for first in range(0, len(x), batch_size):
        target = labels[first : first + batch_size]
        pred = net.forward(x[first : first + batch_size])
        mean.add(loss.forward(pred, target), pred, target)
    return mean
