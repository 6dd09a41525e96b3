"""Machine code on disk, read with care.

Numba's cache believes what it reads: a file cut short raises whatever comes of that, and one changed bit in
machine code runs. Here every file begins with the checksum of the rest. What does not fit it is compiled anew
and written again, and a disk that refuses to be written costs time, no more.

The checksum finds accidents, no attackers: Numba's files are pickles, and who can write them can run code. So
the folder is its owner's alone.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
import warnings
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile

_DIGEST = hashlib.sha256().digest_size
_warned = False


def warn_once(message: str) -> None:
    """A warning, unless there has been one in this process."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"fastconv: {message}", RuntimeWarning, stacklevel=3)


def make_private(folder: Path) -> None:
    """Make a folder that its owner alone may write to, who is this user or root, or raise an OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not hasattr(os, "geteuid"):
        return  # Windows: below the user's profile
    facts = folder.stat()
    if facts.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{folder} belongs to another user, whose code would run")
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        folder.chmod(0o700)


class CheckedFiles(IndexDataCacheFile):
    """Numba's files, each behind its checksum."""

    def _load_index(self) -> Any:
        try:
            version, stamp, overloads = pickle.loads(_read(self._index_path))
        except FileNotFoundError:
            return {}
        except Exception:  # damaged, unreadable, or written by something else
            return {}
        return overloads if (version, stamp) == (self._version, self._source_stamp) else {}

    def _save_index(self, overloads: Any) -> None:
        data = self._dump((self._version, self._source_stamp, overloads))
        with self._open_for_write(self._index_path) as file:
            file.write(hashlib.sha256(data).digest() + data)

    def _load_data(self, name: str) -> Any:
        try:
            return pickle.loads(_read(self._data_path(name)))
        except Exception as error:
            raise OSError(f"{name} cannot be used: {error}") from error  # which Numba takes for missing

    def _save_data(self, name: str, data: Any) -> None:
        data = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(data).digest() + data)


def _read(path: str) -> bytes:
    data = Path(path).read_bytes()
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        raise ValueError("damaged")
    return data[_DIGEST:]


class KernelCache(FunctionCache):
    """Numba's cache of a function, which may fail to find or to keep it, but never fails."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        names = (self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp())
        self._cache_file = CheckedFiles(*names)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # such as code that another version of llvmlite wrote
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:
            warn_once(f"compiled code cannot be kept in {self._cache_path} ({error}); it is compiled again")
