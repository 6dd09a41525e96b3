"""Networks on disk, as safetensors files: data only, no code runs on loading."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from fastconv.nn.layer import Layer


def _safetensors(function: str) -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f'{function} needs the package safetensors: pip install "fastconv[nn]"') from error
    return safetensors


def _check_net(function: str, net: Layer) -> None:
    if not isinstance(net, Layer):
        raise TypeError(f"{function}: net must be a Layer, got {type(net).__name__}")


def save(net: Layer, path: str | os.PathLike[str]) -> None:
    """Write the parameters and buffers of a network, with PyTorch's names and shapes.

    A file of that name is replaced only after everything was written.

    Parameters
    ----------
    net : Layer
    path : path of the file, commonly ``*.safetensors``

    Raises
    ------
    TypeError
        Where net is not a Layer.
    ImportError
        Where safetensors is missing.

    Examples
    --------
    >>> import tempfile, fastconv.nn as nn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nn.save(nn.Linear(2, 3), Path(folder, "net.safetensors"))
    ...     os.listdir(folder)
    ['net.safetensors']
    """
    _check_net("save", net)
    safetensors = _safetensors("fastconv.nn.save")
    data = safetensors.numpy.save(net.state_dict())
    target = Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def load(net: Layer, path: str | os.PathLike[str]) -> None:
    """Read the parameters and buffers of a network from a safetensors file.

    Parameters
    ----------
    net : Layer
        Of the shape that was saved: names and array shapes must be the same.
    path : path of the file

    Raises
    ------
    TypeError
        Where net is not a Layer.
    ImportError
        Where safetensors is missing.
    FileNotFoundError
    ValueError
        Where the file is no safetensors file, or holds another network; `net` has not changed.

    Examples
    --------
    >>> import tempfile, fastconv.nn as nn
    >>> net, other = nn.Linear(2, 3, rng=0), nn.Linear(2, 3, rng=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nn.save(net, Path(folder, "net.safetensors"))
    ...     nn.load(other, Path(folder, "net.safetensors"))
    >>> bool((other.params["weight"] == net.params["weight"]).all())
    True
    """
    _check_net("load", net)
    safetensors = _safetensors("fastconv.nn.load")
    data = Path(path).read_bytes()
    try:
        state = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError) as error:
        # a KeyError: a dtype that NumPy lacks, such as bfloat16
        raise ValueError(f"{path}: cannot be read as safetensors: {error}") from error
    try:
        net.load_state_dict(state)
    except (ValueError, TypeError) as error:
        error.add_note(f"in the file {path}")
        raise
