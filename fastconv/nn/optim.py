"""Optimisers: `step()` changes the parameters of a network, in place, by its gradients.

Update rules, argument names and defaults are those of torch.optim.
"""

from __future__ import annotations

import numpy as np

from fastconv.algorithms.updates import ADAM, MOMENTUM, NESTEROV, update
from fastconv.algorithms.updates import SGD as SGD_RULE
from fastconv.arguments import real
from fastconv.nn.layer import Array, Layer


def _fraction(owner: str, name: str, value: float) -> float:
    if not 0 <= real(owner, name, value) < 1:
        raise ValueError(f"{owner}: {name} must be at least 0 and below 1, got {value}")
    return float(value)


def _not_negative(owner: str, name: str, value: float) -> float:
    if not real(owner, name, value) >= 0:
        raise ValueError(f"{owner}: {name} must not be negative, got {value}")
    return float(value)


class Optimizer:
    """Walks over the parameters of a network; a subclass says how one of them changes.

    Attributes
    ----------
    net : Layer
        The network that `step` changes.
    lr : float
        The learning rate; set it at any time, for a schedule.
    weight_decay : float
    steps : int
        How many steps were taken.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> net = nn.Linear(3, 2, rng=0)
    >>> optimizer = nn.SGD(net, lr=0.1)  # a subclass
    >>> loss = nn.CrossEntropy()
    >>> for _ in range(3):
    ...     _ = loss.forward(net.forward(np.ones((4, 3), np.float32), training=True), np.zeros(4, int))
    ...     _ = net.backward(loss.backward())
    ...     optimizer.step()
    >>> optimizer.steps
    3
    """

    def __init__(self, net: Layer, lr: float, weight_decay: float) -> None:
        name = type(self).__name__
        if not isinstance(net, Layer):
            raise TypeError(f"{name}: net must be a Layer, got {type(net).__name__}")
        self.net = net
        self.lr = _not_negative(name, "lr", lr)
        self.weight_decay = _not_negative(name, "weight_decay", weight_decay)
        self.steps = 0
        # what the rule remembers of each parameter, and room for one array of its size
        self._state: dict[str, dict[str, Array]] = {}
        self._scratch: dict[str, Array] = {}

    def step(self) -> None:
        """Change every parameter by the gradient that the last backward left.

        Raises
        ------
        RuntimeError
            Where a parameter has no gradient; then none has changed.
        """
        params, grads = self.net.params, self.net.grads
        missing = [name for name in params if name not in grads]
        if missing:
            raise RuntimeError(
                f"{type(self).__name__}.step: no gradient for {', '.join(missing)}; "
                "run the network's backward first"
            )
        self.steps += 1
        if self._update_all(params, grads):
            return
        for name, param in params.items():
            state = self._state.setdefault(name, {})
            if name not in self._scratch:
                self._scratch[name] = np.empty_like(param)
            self._update(param, grads[name], state, self._scratch[name])

    def _update_all(self, params: dict[str, Array], grads: dict[str, Array]) -> bool:
        """Change all parameters in one pass, if there is a way: whether there was."""
        return False

    def _remembered(self, params: dict[str, Array], *names: str) -> list[list[Array]]:
        """What the rule remembers of each parameter: at first zeros."""
        found = []
        for name, param in params.items():
            state = self._state.setdefault(name, {})
            for key in names:
                if key not in state:
                    state[key] = np.zeros_like(param)
            found.append([state[key] for key in names])
        return found

    def _update(self, param: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        """Change `param` in place; `grad` is the network's and stays as it is."""
        raise NotImplementedError(f"{type(self).__name__} must define _update")

    def _decayed(self, param: Array, grad: Array, room: Array) -> Array:
        """The gradient of the loss plus weight_decay / 2 |param|^2."""
        if not self.weight_decay:
            return grad
        np.multiply(param, self.weight_decay, out=room)
        room += grad
        return room

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lr={self.lr})"


class SGD(Optimizer):
    """Gradient descent, with momentum v = momentum v + (1 - dampening) grad; param -= lr v.

    Parameters
    ----------
    net : Layer
    lr : float
    momentum, dampening : float
    weight_decay : float
        Added to the gradient, times the parameter.
    nesterov : bool
        Step along grad + momentum v instead of v; needs a momentum and no dampening.

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> net = nn.Linear(2, 1, bias=False)
    >>> net.params["weight"][:] = 1
    >>> _ = net.forward(np.ones((1, 2), np.float32), training=True)
    >>> _ = net.backward(np.ones((1, 1), np.float32))
    >>> nn.SGD(net, lr=0.25).step()
    >>> net.params["weight"]
    array([[0.75, 0.75]], dtype=float32)
    """

    def __init__(
        self,
        net: Layer,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(net, lr, weight_decay)
        self.momentum = _not_negative("SGD", "momentum", momentum)
        self.dampening = float(dampening)
        if nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                "SGD: nesterov needs a momentum above 0 and a dampening of 0, "
                f"got momentum = {momentum}, dampening = {dampening}"
            )
        self.nesterov = nesterov

    def _update_all(self, params: dict[str, Array], grads: dict[str, Array]) -> bool:
        known = [bool(self._state.get(name)) for name in params]
        if type(self) is not SGD or (self.momentum and any(known) != all(known)):
            return False
        names = ("velocity",) if self.momentum else ()
        arrays = self._remembered(params, *names)
        tensors = [(params[n], grads[n], *a) for n, a in zip(params, arrays, strict=True)]
        rule = (NESTEROV if self.nesterov else MOMENTUM) if self.momentum else SGD_RULE
        # the first gradient enters undampened
        share = 1 - self.dampening if all(known) else 1
        if update(rule, tensors, (self.weight_decay, self.lr, self.momentum, share)):
            return True
        if not all(known):
            self._state.clear()
        return False

    def _update(self, param: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        grad = self._decayed(param, grad, scratch)
        if self.momentum:
            if "velocity" not in state:
                # the first gradient enters undampened
                state["velocity"] = grad.copy()
            else:
                state["velocity"] *= self.momentum
                state["velocity"] += grad * (1 - self.dampening)
            velocity = state["velocity"]
            grad = grad + velocity * self.momentum if self.nesterov else velocity
        np.multiply(grad, self.lr, out=scratch)
        param -= scratch


class RMSprop(Optimizer):
    """param -= lr grad / (sqrt(mean of grad^2) + eps), with a running mean.

    Parameters
    ----------
    net : Layer
    lr : float
    alpha : float
        Share of the past in the running mean.
    eps : float
    weight_decay : float
        Added to the gradient, times the parameter.
    momentum : float
        Of the scaled gradients.
    centered : bool
        Divide by the running standard deviation: the mean of grad is taken out.

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Notes
    -----
    Source: https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> optimizer = nn.RMSprop(nn.Linear(2, 1), lr=0.01, momentum=0.9)
    >>> optimizer.lr, optimizer.steps
    (0.01, 0)
    """

    def __init__(
        self,
        net: Layer,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
    ) -> None:
        super().__init__(net, lr, weight_decay)
        self.alpha = _fraction("RMSprop", "alpha", alpha)
        self.eps = _not_negative("RMSprop", "eps", eps)
        self.momentum = _not_negative("RMSprop", "momentum", momentum)
        self.centered = centered

    def _update(self, param: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        if not state:
            state["square"] = np.zeros_like(param)
            if self.centered:
                state["mean"] = np.zeros_like(param)
            if self.momentum:
                state["velocity"] = np.zeros_like(param)
        grad = self._decayed(param, grad, scratch)
        square = state["square"]
        square *= self.alpha
        square += grad * grad * (1 - self.alpha)
        if self.centered:
            mean = state["mean"]
            mean *= self.alpha
            mean += grad * (1 - self.alpha)
            scale = np.sqrt(square - mean * mean)
        else:
            scale = np.sqrt(square)
        scale += self.eps
        np.divide(grad, scale, out=scratch)
        if self.momentum:
            state["velocity"] *= self.momentum
            state["velocity"] += scratch
            np.copyto(scratch, state["velocity"])
        scratch *= self.lr
        param -= scratch


class Adam(Optimizer):
    """param -= lr m / (sqrt(v) + eps), with m and v the running means of grad and grad^2.

    Both means start at 0 and are divided by 1 - beta^steps to make up for it.

    Parameters
    ----------
    net : Layer
    lr : float
    betas : (float, float)
        Share of the past in the two running means.
    eps : float
    weight_decay : float
        Added to the gradient, times the parameter; `AdamW` is usually the better choice.

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Notes
    -----
    Source: https://arxiv.org/abs/1412.6980

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> net = nn.Linear(2, 1, rng=0)
    >>> _ = net.backward(net.forward(np.ones((4, 2), np.float32), training=True))
    >>> before = net.params["bias"].copy()
    >>> nn.Adam(net, lr=0.1).step()  # whose first step is lr, whatever the gradient
    >>> abs(net.params["bias"] - before).round(3)
    array([0.1], dtype=float32)
    """

    def __init__(
        self,
        net: Layer,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
    ) -> None:
        super().__init__(net, lr, weight_decay)
        name = type(self).__name__
        first, second = betas
        self.betas = (_fraction(name, "betas[0]", first), _fraction(name, "betas[1]", second))
        self.eps = _not_negative(name, "eps", eps)

    def _update_all(self, params: dict[str, Array], grads: dict[str, Array]) -> bool:
        return type(self) is Adam and self._adam_all(params, grads, self.weight_decay, 0)

    def _adam_all(
        self, params: dict[str, Array], grads: dict[str, Array], decay: float, decoupled: float
    ) -> bool:
        beta1, beta2 = self.betas
        arrays = self._remembered(params, "mean", "square")
        tensors = [(params[n], grads[n], *a) for n, a in zip(params, arrays, strict=True)]
        scale = 1 / np.sqrt(1 - beta2**self.steps).item()
        size = self.lr / (1 - beta1**self.steps)
        return update(ADAM, tensors, (decay, 1 - self.lr * decoupled, beta1, beta2, scale, self.eps, size))

    def _update(self, param: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        self._adam(param, self._decayed(param, grad, scratch), state, scratch)

    def _adam(self, param: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        for name in ("mean", "square", "room"):
            if name not in state:
                state[name] = np.zeros_like(param)
        beta1, beta2 = self.betas
        mean, square, room = state["mean"], state["square"], state["room"]
        # mean += (1 - beta1) (grad - mean); `grad` may lie in scratch, so that comes last
        np.multiply(grad, grad, out=room)
        room *= 1 - beta2
        square *= beta2
        square += room
        np.subtract(grad, mean, out=room)
        room *= 1 - beta1
        mean += room

        np.sqrt(square, out=scratch)
        scratch *= 1 / np.sqrt(1 - beta2**self.steps).item()
        scratch += self.eps
        np.divide(mean, scratch, out=scratch)
        scratch *= self.lr / (1 - beta1**self.steps)
        param -= scratch


class AdamW(Adam):
    """`Adam` with the weight decay apart from the gradient: param -= lr weight_decay param.

    Parameters
    ----------
    net, lr, betas, eps
        As for `Adam`.
    weight_decay : float

    Raises
    ------
    ValueError, TypeError
        Where an argument is out of range or of the wrong type.

    Notes
    -----
    Source: https://arxiv.org/abs/1711.05101

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> optimizer = nn.AdamW(nn.Linear(2, 1), lr=3e-4, weight_decay=0.1)
    >>> optimizer.lr, optimizer.steps
    (0.0003, 0)
    """

    def __init__(
        self,
        net: Layer,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(net, lr, betas, eps, weight_decay)

    def _update_all(self, params: dict[str, Array], grads: dict[str, Array]) -> bool:
        return type(self) is AdamW and self._adam_all(params, grads, 0, self.weight_decay)

    def _update(self, param: Array, grad: Array, state: dict[str, Array], scratch: Array) -> None:
        param *= 1 - self.lr * self.weight_decay
        self._adam(param, grad, state, scratch)
