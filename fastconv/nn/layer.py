"""What every layer has in common, and `Sequential`, which chains them.

A layer keeps what its backward needs only when it was called with ``training=True``, until the
next forward. An inference forward drops it, so a network at rest holds its parameters and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Rng = int | np.random.Generator | None


class Layer:
    """A function with parameters: subclass it and write `forward` and `backward`.

    A subclass puts its parameters into ``self.params`` when it is made, calls ``self._keep`` in
    `forward`, ``self._recall`` in `backward`, and stores the gradients in ``self.grads`` under the
    names of the parameters.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> class Scale(nn.Layer):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.params["factor"] = np.full(1, 3.0)
    ...
    ...     def forward(self, x, training=False):
    ...         self._keep(training, x)
    ...         return self.params["factor"] * x
    ...
    ...     def backward(self, grad_y):
    ...         (x,) = self._recall()
    ...         self.grads["factor"] = np.sum(grad_y * x, keepdims=True)[0]
    ...         return self.params["factor"] * grad_y
    >>> layer = Scale()
    >>> layer.forward(np.array([[1.0, 2.0]]), training=True)
    array([[3., 6.]])
    >>> layer.backward(np.array([[1.0, 1.0]]))
    array([[3., 3.]])
    >>> layer.grads
    {'factor': array([3.])}
    """

    def __init__(self) -> None:
        self._params: dict[str, Array] = {}
        self._grads: dict[str, Array] = {}
        self._buffers: dict[str, Array] = {}
        self._saved: tuple[Any, ...] | None = None

    @property
    def params(self) -> dict[str, Array]:
        """The parameters themselves: writing into one changes the layer."""
        return self._params

    @property
    def grads(self) -> dict[str, Array]:
        """The gradients that the last `backward` left, under the names of `params`."""
        return self._grads

    def forward(self, x: Array, training: bool = False) -> Array:
        """The output for x; with `training` also keep what `backward` needs.

        Parameters
        ----------
        x : float32 or float64 array
            Of the dtype of the parameters, if there are any; it is not written to.
        training : bool
            Whether a `backward` may follow; some layers do something else then, as `Dropout`.

        Returns
        -------
        array
            Of the dtype of x.

        Raises
        ------
        ValueError, TypeError
            Where the shape or dtype of x is not what the layer takes.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def backward(self, grad_y: Array) -> Array:
        """The gradient of the last training forward's x; parameter gradients go to `grads`.

        Raises
        ------
        RuntimeError
            Where the last forward was none, or one for inference.
        ValueError, TypeError
            Where the shape or dtype of `grad_y` is not that of the layer's output.
        """
        raise NotImplementedError(f"{type(self).__name__} must define backward")

    def backward_params(self, grad_y: Array) -> None:
        """`backward` for the parameters alone.

        Training never reads the gradient of the data, which for a first layer is much of the work.
        """
        self.backward(grad_y)

    def predict(self, x: Array, batch_size: int = 256) -> Array:
        """The inference output for all of x, computed `batch_size` samples at a time.

        Parameters
        ----------
        x : array (N, ...)
        batch_size : int
            Bounds the memory that the layers in between need.

        Returns
        -------
        array (N, ...)
        """
        if batch_size < 1:
            raise ValueError(f"predict: batch_size must be at least 1, got {batch_size}")
        if np.ndim(x) < 1:
            raise ValueError("predict: x must have a batch axis, got a scalar")
        # an empty x still runs once, to get the right shape
        first = self.forward(x[:batch_size])
        if len(x) <= batch_size:
            return first
        y = np.empty((len(x), *first.shape[1:]), first.dtype)
        y[:batch_size] = first
        for start in range(batch_size, len(x), batch_size):
            y[start : start + batch_size] = self.forward(x[start : start + batch_size])
        return y

    # --- parameters by PyTorch's names ----------------------------------------------------------

    def _state_views(self) -> dict[str, Array]:
        """Writable views of parameters and buffers, with the names and shapes that PyTorch has."""
        return {**self._params, **self._buffers}

    def state_dict(self) -> dict[str, Array]:
        """A copy of all parameters and buffers, with the names and shapes that PyTorch gives them.

        >>> import fastconv.nn as nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 5, layout="NHWC"), nn.ReLU())
        >>> {name: value.shape for name, value in net.state_dict().items()}
        {'0.weight': (8, 3, 5, 5), '0.bias': (8,)}
        """
        # a copy in C order whatever the view's strides: safetensors writes the bytes as they lie
        return {name: np.array(view, order="C") for name, view in self._state_views().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy parameters and buffers from `state`; on an error nothing has changed.

        Floating-point values are converted to the dtype of the parameter.

        Raises
        ------
        ValueError
            Where a name is missing or unknown, or a shape differs.
        TypeError
            Where a value is of another kind: integers for a float parameter, or the reverse.
        """
        views = self._state_views()
        missing = [name for name in views if name not in state]
        unknown = [name for name in state if name not in views]
        if missing or unknown:
            parts = [
                f"{text} {', '.join(map(repr, names))}"
                for text, names in (("missing", missing), ("unexpected", unknown))
                if names
            ]
            raise ValueError(f"load_state_dict: {'; '.join(parts)}")
        values = {name: np.asarray(state[name]) for name in views}
        for name, value in values.items():
            view = views[name]
            if value.shape != view.shape:
                raise ValueError(f"load_state_dict: {name!r} has shape {value.shape}, must be {view.shape}")
            kinds = "f" if view.dtype.kind == "f" else "iu"
            if value.dtype.kind not in kinds:
                raise TypeError(
                    f"load_state_dict: {name!r} has dtype {value.dtype}, cannot become {view.dtype}"
                )
        for name, value in values.items():
            np.copyto(views[name], value, casting="same_kind")

    # --- for subclasses -------------------------------------------------------------------------

    def _keep(self, training: bool, *values: Any) -> None:
        """Save what backward needs, or drop what an earlier forward saved."""
        self._saved = values if training else None

    def _check_grad(self, grad_y: Array, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        """Check the gradient of an output that had this shape and dtype."""
        if not isinstance(grad_y, np.ndarray):
            raise TypeError(f"{self!r}: grad_y must be a numpy array, got {type(grad_y).__name__}")
        if grad_y.shape != shape:
            raise ValueError(
                f"{self!r}: grad_y must have the shape of the output, {shape}, got {grad_y.shape}"
            )
        if grad_y.dtype != dtype:
            raise TypeError(
                f"{self!r}: grad_y must have the dtype of the output, {np.dtype(dtype)}, got {grad_y.dtype}"
            )

    def _recall(self) -> tuple[Any, ...]:
        """What forward saved."""
        if self._saved is None:
            raise RuntimeError(
                f"{self!r}: backward needs a forward(x, training=True) just before it; "
                "none ran, or the last forward was for inference, which keeps nothing, or it ran "
                "together with its neighbours in a Sequential, whose backward is the one to call"
            )
        return self._saved

    def _floating(self, x: Any) -> Array:
        """Check an input that may have any shape; the same numbers as a plain native array."""
        # a masked array is an ndarray too, but its mask would be ignored
        if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{self!r}: x must be a numpy array, got {type(x).__name__}")
        native = x.dtype.newbyteorder("=")
        if native not in (np.float32, np.float64):
            raise TypeError(f"{self!r}: x must be float32 or float64, got {x.dtype}")
        return x if type(x) is np.ndarray and x.dtype.isnative else np.asarray(x, native)

    def _forward_fused(self, followers: Sequence[Layer], x: Array, training: bool) -> Fused | None:
        """The forward of this layer and the first followers in one go, or None where there is no way."""
        return None

    def _pools_pairs(self) -> bool:
        """Whether this is max pooling of 2 x 2 cells, which a convolution can do with its own result."""
        return False

    def _describe(self) -> str:
        """The arguments, for repr."""
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()})"


class Fused(NamedTuple):
    """Layers that ran as one.

    Where `backward` is None they have kept what each by itself needs for its own. Else it is theirs together:
    called with grad_y and whether the gradient of x is needed, it stores those of the parameters.
    """

    y: Array
    layers: int
    backward: Callable[[Array, bool], Array | None] | None


class Sequential(Layer):
    """Layers in a row, each fed with the output of the one before.

    Neighbours that can be computed in one go are: what lies between a convolution and the ReLU and the
    pooling behind it never gets into memory. So after a forward of the network it is the network's backward
    that works, and not that of each layer in it.

    Parameters
    ----------
    *layers : Layer
        Each may occur once: a layer keeps what its own last forward saw.

    Raises
    ------
    TypeError
        Where an argument is no layer.
    ValueError
        Where one layer occurs twice.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU())
    >>> net.forward(np.ones((4, 3, 2, 2), np.float32)).shape
    (4, 5)
    >>> list(net.params)
    ['1.weight', '1.bias']
    """

    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"Sequential: argument {index} must be a Layer, got {layer!r}")
        self.layers = layers
        # what ran in the last forward: the first layer's number, and the backward of layers that ran as one
        self._runs: list[tuple[int, Callable[[Array, bool], Array | None] | None]] = []
        leaves = list(self._leaves())
        for index, leaf in enumerate(leaves):
            if any(leaf is other for other in leaves[:index]):
                raise ValueError(
                    f"Sequential: {leaf!r} occurs twice, but a layer remembers one forward only; "
                    "make a second layer"
                )

    def _leaves(self) -> Iterator[Layer]:
        for layer in self.layers:
            if isinstance(layer, Sequential):
                yield from layer._leaves()
            else:
                yield layer

    def _collect(self, read: Callable[[Layer], dict[str, Array]]) -> dict[str, Array]:
        return {
            f"{index}.{name}": value
            for index, layer in enumerate(self.layers)
            for name, value in read(layer).items()
        }

    @property
    def params(self) -> dict[str, Array]:
        """The parameters of all layers: ``"<index>.<name>"`` to the array itself."""
        return self._collect(lambda layer: layer.params)

    @property
    def grads(self) -> dict[str, Array]:
        """The gradients that the last backward left, under the names of `params`."""
        return self._collect(lambda layer: layer.grads)

    def _state_views(self) -> dict[str, Array]:
        return self._collect(lambda layer: layer._state_views())

    def forward(self, x: Array, training: bool = False) -> Array:
        layers, index = self.layers, 0
        self._runs = []
        try:
            while index < len(layers):
                fused = layers[index]._forward_fused(layers[index + 1 :], x, training)
                if fused is None:
                    fused = Fused(layers[index].forward(x, training), 1, None)
                if fused.backward is None:
                    self._runs += [(i, None) for i in range(index, index + fused.layers)]
                else:
                    self._runs.append((index, fused.backward))
                x = fused.y
                index += fused.layers
        except (ValueError, TypeError, RuntimeError) as error:
            error.add_note(f"in the forward of layer {index}: {layers[index]!r}")
            raise
        return x

    def backward(self, grad_y: Array) -> Array:
        grad_x = self._backward(grad_y, 0, True)
        assert grad_x is not None
        return grad_x

    def backward_params(self, grad_y: Array) -> None:
        # nothing in front of the first layer with parameters is of use
        first = next((i for i, layer in enumerate(self.layers) if layer.params), None)
        if first is not None:
            self._backward(grad_y, first, False)

    def _backward(self, grad: Array, stop: int, need_x: bool) -> Array | None:
        """Backward through the layers from the last one to number `stop`; of that, what is needed."""
        layers, index = self.layers, stop
        # before the first forward each layer says by itself that it needs one
        runs = self._runs or [(i, None) for i in range(len(layers))]
        result: Array | None = grad
        try:
            for index, fused in reversed(runs):
                if index < stop:
                    break
                needed = need_x or index > stop
                assert result is not None
                if fused is not None:
                    result = fused(result, needed)
                elif needed:
                    result = layers[index].backward(result)
                else:
                    layers[index].backward_params(result)
        except (ValueError, TypeError, RuntimeError) as error:
            error.add_note(f"in the backward of layer {index}: {layers[index]!r}")
            raise
        return result

    def __repr__(self) -> str:
        lines = [f"  {index}: {layer!r}".replace("\n", "\n  ") for index, layer in enumerate(self.layers)]
        return "\n".join(["Sequential(", *lines, ")"])


def positive(owner: str, name: str, value: Any) -> int:
    """A constructor argument that must be an int of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{owner}: {name} must be an int, got {value!r}")
    number = int(value.__index__())
    if number < 1:
        raise ValueError(f"{owner}: {name} must be at least 1, got {number}")
    return number


def floating_dtype(owner: str, dtype: DTypeLike) -> np.dtype[Any]:
    """A constructor's dtype argument: float32 or float64."""
    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise TypeError(f"{owner}: dtype must be float32 or float64, got {kind}")
    return kind


def uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, dtype: DTypeLike) -> Array:
    """PyTorch's default start for weights and biases: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).

    Drawn in float64 whatever `dtype`, so that one seed is one network in both precisions.
    Source: kaiming_uniform with a = sqrt(5), https://arxiv.org/abs/1502.01852.
    """
    bound = 1 / np.sqrt(fan_in)
    return rng.uniform(-bound, bound, shape).astype(dtype)
