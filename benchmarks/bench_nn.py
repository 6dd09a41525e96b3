"""One step of training: forward, loss, backward and Adam, of the small nets that people start with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from benchmarks.contenders import Contender, line_up
from benchmarks.race import Race
from benchmarks.torch_peer import load_torch
from fastconv import nn

LEARNING_RATE = 1e-3


class Net(NamedTuple):
    """A network for 28x28 digits, without dropout, whose results could not be compared."""

    name: str
    batch: int
    #: constructors of layers of `fastconv.nn` or `torch.nn`, with their arguments
    layers: tuple[tuple[Any, ...], ...]


NETS = (
    Net(
        "mnist_pytorch",
        64,
        (
            ("Conv2d", 1, 8, 3, 1, 1),
            ("ReLU",),
            ("MaxPool2d", 2),
            ("Conv2d", 8, 16, 3, 1, 1),
            ("ReLU",),
            ("MaxPool2d", 2),
            ("Flatten",),
            ("Linear", 16 * 7 * 7, 128),
            ("ReLU",),
            ("Linear", 128, 10),
        ),
    ),
    Net(
        "mnist_keras",
        32,
        (
            ("Conv2d", 1, 32, 3),
            ("ReLU",),
            ("MaxPool2d", 2),
            ("Flatten",),
            ("Linear", 32 * 13 * 13, 100),
            ("ReLU",),
            ("Linear", 100, 10),
        ),
    ),
)


def build(net: Net, dtype: Any) -> nn.Sequential:
    """With `fastconv.nn`: the same parameters in every dtype, but for rounding."""
    rng = np.random.default_rng(0)
    layers = []
    for kind, *args in net.layers:
        settings = {"rng": rng, "dtype": dtype} if kind in ("Conv2d", "Linear") else {}
        layers.append(getattr(nn, kind)(*args, **settings))
    return nn.Sequential(*layers)


def digits(net: Net, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((net.batch, 1, 28, 28)).astype(dtype), rng.integers(0, 10, net.batch)


def fastconv_step(net: Net, dtype: Any) -> Callable[[], list[Any]]:
    """A step, which returns the loss and the gradients of the parameters."""
    model, loss = build(net, dtype), nn.CrossEntropy()
    optimizer = nn.Adam(model, lr=LEARNING_RATE)
    x, labels = digits(net, dtype)

    def step() -> list[Any]:
        value = loss.forward(model.forward(x, training=True), labels)
        model.backward_params(loss.backward())
        optimizer.step()
        return [value, *model.grads.values()]

    return step


def torch_step(net: Net) -> Contender:
    torch = load_torch()
    model = torch.nn.Sequential(*(getattr(torch.nn, kind)(*args) for kind, *args in net.layers))
    state = build(net, np.float32).state_dict()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    loss, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    x, labels = map(torch.from_numpy, digits(net, np.float32))

    def step() -> list[Any]:
        optimizer.zero_grad()
        value = loss(model(x), labels)
        value.backward()
        optimizer.step()
        return [value.detach(), *(parameter.grad for parameter in model.parameters())]

    return Contender(step)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_training_step(race: Race, net: Net) -> None:
    """The first step is checked, those that follow are timed."""
    makers = {
        "fastconv": lambda: Contender(fastconv_step(net, np.float32)),
        **({"torch": lambda: torch_step(net)} if "torch" in race.peers else {}),
    }
    race(
        line_up(makers),
        fastconv_step(net, np.float64)(),
        np.float32,
        operation="training step, float32",
        layer=net.name,
        net="MNIST",
        shape=f"batch of {net.batch}",
        algorithm="auto",
        work=net.batch,
        unit="images/s",
    )


# --- a tenth of an epoch ------------------------------------------------------------------------

DIGITS = 6_000


def many_digits(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.standard_normal((DIGITS, 1, 28, 28)).astype(dtype), rng.integers(0, 10, DIGITS)


def fastconv_fit(net: Net, dtype: Any) -> Callable[[], float]:
    """`nn.fit` over all digits, with a learning rate of 0: the mean loss does not depend on their order."""
    model, loss = build(net, dtype), nn.CrossEntropy()
    optimizer = nn.Adam(model, lr=0)
    x, labels = many_digits(dtype)
    settings = {"loss": loss, "optimizer": optimizer, "epochs": 1, "batch_size": net.batch}

    def fit() -> float:
        return nn.fit(model, x, labels, **settings).loss[0]

    return fit


def torch_fit(net: Net) -> Contender:
    """The loop of PyTorch's tutorials, but for the loader: the digits are in memory."""
    torch = load_torch()
    model = torch.nn.Sequential(*(getattr(torch.nn, kind)(*args) for kind, *args in net.layers))
    state = build(net, np.float32).state_dict()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    loss, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.0)
    x, labels = map(torch.from_numpy, many_digits(np.float32))

    def fit() -> float:
        total = 0.0
        for batch in torch.randperm(DIGITS).split(net.batch):
            optimizer.zero_grad()
            value = loss(model(x[batch]), labels[batch])
            value.backward()
            optimizer.step()
            total += value.item() * len(batch)
        return total / DIGITS

    return Contender(fit)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_tenth_of_an_epoch(race: Race, net: Net) -> None:
    makers = {
        "fastconv": lambda: Contender(fastconv_fit(net, np.float32)),
        **({"torch": lambda: torch_fit(net)} if "torch" in race.peers else {}),
    }
    race(
        line_up(makers),
        np.array(fastconv_fit(net, np.float64)()),
        np.float32,
        operation="a tenth of an epoch, float32",
        layer=net.name,
        net="MNIST",
        shape=f"{DIGITS} digits in batches of {net.batch}",
        algorithm="auto",
        work=DIGITS,
        unit="images/s",
    )
