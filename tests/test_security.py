"""Nothing that is loaded can run code, claim more memory than its file has, or be written elsewhere."""

from __future__ import annotations

import ast
import contextlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv
from fastconv import datasets, nn

PACKAGE = Path(fastconv.__file__).parent

#: Modules and functions with which data becomes code.
DANGEROUS = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "eval",
    "exec",
    "yaml",
}
#: The one place: machine code, in a folder that is its owner's alone. See test_cache.py.
ALLOWED = {("cache.py", "pickle")}


def test_no_pickle() -> None:
    """Nor `eval`, `exec`, `numpy.load` unless told not to unpickle, or a shell."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module.split(".")[0]]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = [node.func.id]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                told = {keyword.arg: keyword.value for keyword in node.keywords}
                refuses = told.pop("allow_pickle", None)
                if isinstance(refuses, ast.Constant) and refuses.value is False:
                    continue
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                if (owner, node.func.attr) in {("np", "load"), ("numpy", "load"), ("os", "system")}:
                    found.add((file.name, f"{owner}.{node.func.attr}"))
                if refuses is not None or "shell" in told:
                    found.add((file.name, "allow_pickle or shell"))
            found |= {(file.name, name) for name in names if name in DANGEROUS}
    assert found == ALLOWED


# --- safetensors --------------------------------------------------------------------------------


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3, rng=np.random.default_rng(0)), nn.Linear(3, 2))


def safetensors(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: Any, start: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LIES = {
    "header longer than the file": safetensors({}, b"", length=2**40),
    "header of all bytes": safetensors({}, b"", length=2**64 - 1),
    "no header": struct.pack("<Q", 0),
    "not JSON": safetensors(b"{]" * 20, b""),
    "deep JSON": safetensors(b"[" * 100_000, b""),
    "a list": safetensors([1, 2], b""),
    "data beyond the end": safetensors({"0.weight": entry([2, 1, 3, 3], 0, 2**50)}, bytes(72)),
    "negative data": safetensors({"0.weight": entry([2, 1, 3, 3], -72, 0)}, bytes(72)),
    "end before the start": safetensors({"0.weight": entry([2, 1, 3, 3], 72, 0)}, bytes(72)),
    "shape larger than the data": safetensors({"0.weight": entry([2**40, 2**40], 0, 72)}, bytes(72)),
    "shape that overflows": safetensors({"0.weight": entry([2**63, 2, 2], 0, 72)}, bytes(72)),
    "negative shape": safetensors({"0.weight": entry([-2, -1, 3, 3], 0, 72)}, bytes(72)),
    "no such dtype": safetensors({"0.weight": entry([2, 1, 3, 3], 0, 72, "OBJECT")}, bytes(72)),
    "overlapping": safetensors({"0.weight": entry([2], 0, 8), "0.bias": entry([2], 4, 12)}, bytes(12)),
    "a hole": safetensors({"0.weight": entry([2], 0, 8), "0.bias": entry([2], 40, 48)}, bytes(48)),
}


@pytest.mark.parametrize("data", LIES.values(), ids=LIES.keys())
def test_lying_safetensors(data: bytes, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path, layer = tmp_path / "file", net()
    path.write_bytes(data)
    before = {name: array.copy() for name, array in layer.state_dict().items()}
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="file"):
            nn.load(layer, path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@given(st.data())
def test_any_damage_to_safetensors(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Cut short, or with a byte changed: a ValueError, or a network of the right shapes."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path_factory.mktemp("nets") / "net.safetensors"
    nn.save(net(), path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    layer = net()
    with contextlib.suppress(ValueError):
        nn.load(layer, path)
    for name, array in net().state_dict().items():
        assert layer.state_dict()[name].shape == array.shape


# --- files that come from elsewhere -------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../outside", "..", "/outside", "a/b", "a\\b", "", ".", "C:outside", "~/outside", "a\0b"]
)
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    """Names of files to download are names, not paths."""
    folder = tmp_path / "inside"
    with pytest.raises(ValueError, match=r"download_mnist: .* must be the name of a file"):
        datasets.download_mnist(folder, sha256={name: "0" * 64}, mirrors=["http://127.0.0.1:9/"])
    assert not folder.exists()


@pytest.mark.parametrize("checksum", ["", None, "0" * 63, "md5:" + "0" * 32, "g" * 64])
def test_no_download_without_a_checksum(checksum: Any, tmp_path: Path) -> None:
    """Else pooch would take whatever comes."""
    with pytest.raises(ValueError, match=r"download_mnist: .* needs a SHA-256"):
        datasets.download_mnist(tmp_path, sha256={"file": checksum}, mirrors=["http://127.0.0.1:9/"])


def test_every_file_of_mnist_has_its_checksum() -> None:
    assert len(datasets.SHA256) == 4
    for name, checksum in datasets.SHA256.items():
        assert Path(name).name == name
        assert len(bytes.fromhex(checksum)) == 32
    assert all(mirror.startswith("https://") for mirror in datasets.MIRRORS)
