"""Training on a cluster: each batch is split over the workers, and their gradients are averaged.

The driver holds the network and the optimiser. For every batch it sends the network, a part of the samples
and the part's place in the batch to each worker, which sends back gradients. So tasks keep nothing from one
step to the next, and give the same whenever and wherever they run: what a lost worker was doing is done again
elsewhere.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import dask.system
import numpy as np
from distributed import Client, LocalCluster
from distributed.protocol.pickle import dumps, loads

from fastconv.dask.shares import with_share
from fastconv.nn import History, Layer, Loss, Optimizer
from fastconv.nn import fit as fit_here
from fastconv.nn.layer import Array, positive
from fastconv.nn.train import batch_gradients

__all__ = ["connected", "fit"]

#: Most workers that `connected("local")` starts.
MOST_WORKERS = 4


def fit(
    net: Layer,
    x: Array,
    labels: Array,
    *,
    loss: Loss,
    optimizer: Optimizer,
    client: Client,
    parts: int | None = None,
    **options: Any,
) -> History:
    """`fastconv.nn.fit` on the workers of a cluster: synchronous, data-parallel training.

    The samples of each batch are split into parts of about equal size, the gradients of the parts averaged
    by their numbers of samples, and the optimiser takes its step here. That is the gradient of the whole
    batch up to rounding, and so the training takes the course that it would take in one process. Order and
    augmentation of the samples are decided here, and dropout makes for each sample the choices that it would
    make in the whole batch. Batch normalisation is the exception: it normalises each part by the part's own
    mean and variance, and the running estimates are averaged.

    Parameters
    ----------
    net, x, labels, loss, optimizer, **options
        As for `fastconv.nn.fit`.
    client : distributed.Client
        Of the cluster.
    parts : int, optional
        Into how many parts a batch is split: by default as many as there are workers at the start. For one
        number the results are the same to the last bit, whatever runs where, and whoever is lost meanwhile.

    Returns
    -------
    History

    Raises
    ------
    ValueError, TypeError, ImportError
        As `fastconv.nn.fit`.

    Notes
    -----
    A step sends the network to every worker and the gradients back, so that it pays for networks that compute
    for longer than that takes. A worker that is lost costs the repetition of the parts that it had; after
    four workers lost with one part (``distributed.scheduler.allowed-failures``) the cluster gives up.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> from distributed import Client
    >>> x = np.random.default_rng(0).standard_normal((20, 3), np.float32)
    >>> net = nn.Linear(3, 2, rng=0)
    >>> with Client(processes=False, dashboard_address=":0") as client:
    ...     history = fit(net, x, (x[:, 0] > 0).astype(int), loss=nn.CrossEntropy(), client=client,
    ...                   optimizer=nn.Adam(net), epochs=2, batch_size=8, seed=0)
    >>> len(history.loss)
    2
    """
    if parts is None:
        parts = max(1, len(client.nthreads()))
    cluster = _Cluster(net, loss, client, positive("fit", "parts", parts))
    return fit_here(net, x, labels, loss=loss, optimizer=optimizer, gradients=cluster.gradients, **options)


class Part(NamedTuple):
    """What a worker sends back."""

    samples: int
    loss: float
    pred: Array
    grads: dict[str, Array]
    #: of each layer: what a training forward changes besides
    buffers: list[dict[str, Array]]
    random: list[Any]


class _Cluster:
    """Computes the gradients of batches of one network."""

    def __init__(self, net: Layer, loss: Loss, client: Client, parts: int) -> None:
        self.net, self.client, self.parts = net, client, parts
        self.loss = copy.copy(loss)
        self.loss._saved = None

    def gradients(self, samples: Array, target: Array) -> tuple[float, Array]:
        """The mean loss and the predictions; the gradients are left in the network."""
        state = dumps((self.net, self.loss))  # once for all parts
        bounds = np.linspace(0, len(samples), min(self.parts, len(samples)) + 1).astype(int).tolist()
        futures = [
            # not pure: there is nothing to be found again, and to hash the arguments takes time
            self.client.submit(part_gradients, state, samples[a:b], target[a:b], a, pure=False)
            for a, b in pairwise(bounds)
        ]
        return self._joined(self.client.gather(futures))

    def _joined(self, parts: Sequence[Part]) -> tuple[float, Array]:
        total = sum(part.samples for part in parts)
        shares = [part.samples / total for part in parts]
        names = parts[0].grads
        self.net._set_grads({name: _mean(shares, [part.grads[name] for part in parts]) for name in names})
        for number, layer in enumerate(self.net._leaves()):
            for name, buffer in layer._buffers.items():
                buffer[...] = _mean(shares, [part.buffers[number][name] for part in parts])
            if parts[0].random[number] is not None:
                layer._rng.bit_generator.state = parts[0].random[number]  # type: ignore[attr-defined]
        value = sum(share * part.loss for share, part in zip(shares, parts, strict=True))
        return value, np.concatenate([part.pred for part in parts])


def _mean(shares: Sequence[float], arrays: Sequence[Array]) -> Array:
    """Weighted, always in the same order; integers are those of the first."""
    if arrays[0].dtype.kind != "f":
        return arrays[0]
    mean: Array = arrays[0] * arrays[0].dtype.type(shares[0])
    for share, array in zip(shares[1:], arrays[1:], strict=True):
        mean += array * array.dtype.type(share)
    return mean


def part_gradients(state: bytes, samples: Array, target: Array, first: int) -> Part:
    """Forward and backward of the part of a batch that begins with sample number `first`, on a worker."""
    net, loss = loads(state)
    net._take_part(first)
    value, pred = with_share(batch_gradients, net, loss, samples, target)
    leaves = list(net._leaves())
    generators = [getattr(layer, "_rng", None) for layer in leaves]
    return Part(
        len(samples),
        value,
        pred,
        net.grads,
        [layer._buffers for layer in leaves],
        [None if rng is None else rng.bit_generator.state for rng in generators],
    )


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the scheduler at an address, or with "local" of a cluster that lives as long as the client.

    A local cluster has a process for each core, but no more than four, which share the cores.
    """
    if address != "local":
        with Client(address) as client:
            yield client
        return
    workers = min(MOST_WORKERS, dask.system.CPU_COUNT)
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=":0",
            # an error of a task is raised here; what workers log is that at the end the scheduler is gone
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
