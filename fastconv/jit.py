"""How functions are compiled: the only place that sets Numba options.

Two kinds of compiled function exist.

``compiled``
    An ordinary lazily compiled function: helpers that are called from other compiled code, and the
    loops of the reference.
``Kernel``
    A *task function* ``task(params, t, tasks)`` reached by its address: share `t` of `tasks` of the work
    that the record at the address `params` describes. One signature serves every kernel, so a single
    parallel launcher (`fastconv.threads`) runs them all and only that one pays for ``parallel=True``,
    which costs seconds a function; the serial version is the same machine code called in a loop.

Machine code is kept on disk, in a user cache folder named after a hash of all the sources that are
compiled; `fastconv.cache` reads and writes it. Numba itself looks only at the file of the decorated function
and would go on running stale code after an edit to a callee in another file; here any edit leads to another
folder.

With NUMBA_DISABLE_JIT=1 everything runs as plain Python, slowly, for debugging and coverage.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import sigutils
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from fastconv.cache import KernelCache, make_private, warn_once

DISABLED = bool(numba.config.DISABLE_JIT)

#: Names that a record may hold: addresses, sizes, strides and flags, all 64-bit.
_FIELD = np.int64

_OPTIONS: dict[str, Any] = {
    # division as in C: no exception paths in the loops
    "error_model": "numpy",
    # "nnan" and "ninf" would delete the handling of NaN and infinity; "reassoc" would make sums
    # depend on the vector width
    "fastmath": {"contract", "nsz"},
}


# --- the cache on disk --------------------------------------------------------------------------


def source_stamp() -> str:
    """Hash of every source that may end up in machine code.

    >>> len(source_stamp())
    16
    """
    package = Path(__file__).parent
    files = [package / f"{name}.py" for name in ("cache", "jit", "reference", "threads")]
    files += sorted((package / "kernels").glob("*.py"))
    digest = hashlib.sha256(numba.__version__.encode())
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _cache_root() -> Path:
    """FASTCONV_CACHE_DIR, else below NUMBA_CACHE_DIR, else the platform's user cache folder."""
    chosen = os.environ.get("FASTCONV_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR) / "fastconv"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastconv"


def _open_cache() -> Path | None:
    """The folder for this version's machine code, or None (with a warning) where none is writable."""
    if DISABLED:
        return None
    try:
        root = _cache_root()
        folder = root / f"kernels-{source_stamp()}"
        make_private(folder)
        probe = folder / f".probe-{os.getpid()}-{threading.get_ident()}"
        probe.touch()
        probe.unlink()
        os.utime(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        warn_once(
            f"no cache folder is writable ({error}); the kernels are compiled anew in "
            "every process. Set FASTCONV_CACHE_DIR to a writable folder."
        )
        return None
    _remove_old(root, keep=folder)
    return folder


def _remove_old(root: Path, keep: Path, days: float = 30) -> None:
    """Drop the folders of other versions that nothing has used for `days`."""
    oldest = time.time() - days * 86400
    with contextlib.suppress(OSError):
        for folder in root.glob("kernels-*"):
            if folder != keep and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


#: Where machine code is kept, or None where it cannot be.
CACHE_FOLDER = _open_cache()


def _keep_on_disk(compiled: Any, function: Callable[..., Any]) -> None:
    """Give a compiled function its cache, as its `enable_caching` would."""
    if CACHE_FOLDER is None:
        return
    before = numba.config.CACHE_DIR  # where Numba looks for the folder
    numba.config.CACHE_DIR = str(CACHE_FOLDER)
    try:
        compiled._cache = KernelCache(function)
    except (OSError, RuntimeError) as error:  # the folder is no longer what it was
        warn_once(f"the cache folder {CACHE_FOLDER} cannot be used any more ({error})")
    finally:
        numba.config.CACHE_DIR = before


# --- compiled functions -------------------------------------------------------------------------


def compiled(function: Callable[..., Any] | None = None, *, parallel: bool = False) -> Any:
    """Decorator: compile on first use, per argument types, and keep the result on disk."""

    def decorate(function: Callable[..., Any]) -> Any:
        result = numba.njit(nogil=True, parallel=parallel, **_OPTIONS)(function)
        _keep_on_disk(result, function)
        return result

    return decorate if function is None else decorate(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Decorator: a helper of kernels, compiled into its callers and never alone.

    Python must not call it, which would crash: the wrappers for that would take 0.2 s of the first
    convolution's 3.2 s.
    """
    return numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Compiling makes millions of objects and few cycles: looking for these takes a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Task:
    """One task function for one dtype, compiled when its address is first asked for."""

    _lock = threading.Lock()

    def __init__(self, function: Callable[[int, int, int], None]) -> None:
        self.function = function
        self._compiled: Any = None
        self._address = 0

    @property
    def address(self) -> int:
        if not self._address:
            with Task._lock:
                if not self._address:
                    # what `numba.cfunc` does
                    signature = sigutils.normalize_signature("void(intp, intp, intp)")
                    self._compiled = CFunc(self.function, signature, locals={}, options=_OPTIONS)
                    _keep_on_disk(self._compiled, self.function)
                    with _collector_paused():
                        self._compiled.compile()
                    self._address = int(self._compiled.address)
        return self._address


#: What the elements of a kernel's arrays are, as one number: of reals it is their bits, 32 or 64, of ints
#: these plus one of two marks.
SIGNED, UNSIGNED = 1000, 2000

_REALS = {np.dtype(f"f{bits // 8}"): bits for bits in (32, 64)}
_INTS = {
    np.dtype(f"{letter}{bits // 8}"): mark + bits
    for letter, mark in (("i", SIGNED), ("u", UNSIGNED))
    for bits in (8, 16, 32, 64)
}


def bits_of(elements: int) -> int:
    """The bits of one element.

    >>> bits_of(32), bits_of(UNSIGNED + 8)
    (32, 8)
    """
    return elements % SIGNED


class Kernel:
    """A task function for each dtype, and the record that it takes its arguments from.

    `factory(bits)` makes the task function for 32- or 64-bit reals, and with `ints` also for ints, which
    `bits` then tells in the way of `SIGNED` and `UNSIGNED`. It must close over plain numbers alone:
    Numba's cache tells functions apart by their closure, and finds only plain values again in the next
    process.
    """

    def __init__(
        self, factory: Callable[[int], Callable[..., None]], record: np.dtype, ints: bool = False
    ) -> None:
        self.name = factory.__name__
        self.record = record
        self._names = frozenset(record.names or ())
        elements = {**_REALS, **(_INTS if ints else {})}
        self._tasks = {dtype: Task(factory(bits)) for dtype, bits in elements.items()}
        self.__doc__ = factory.__doc__

    def task(self, dtype: np.dtype) -> Task:
        return self._tasks[dtype]

    def pack(self, **values: int) -> np.ndarray:
        """The record, filled; every field must be named, and no other."""
        if values.keys() != self._names:
            wrong = sorted(values.keys() ^ self._names)
            raise TypeError(f"{self.name}: missing or unknown parameters {wrong}")
        return np.array([values[name] for name in self.record.names or ()], _FIELD)


def record(names: str) -> np.dtype:
    """The record type of a kernel's parameters: 64-bit ints with the given names."""
    return np.dtype([(name, _FIELD) for name in names.split()])


def kernel(record: np.dtype, ints: bool = False) -> Callable[[Callable[[int], Callable[..., None]]], Kernel]:
    """Decorator: make a `Kernel` of a factory of task functions."""

    def decorate(factory: Callable[[int], Callable[..., None]]) -> Kernel:
        return Kernel(factory, record, ints)

    return decorate


@intrinsic
def call_task(typingctx: Any, address: Any, params: Any, t: Any, tasks: Any) -> Any:
    """Call the task function at `address` from compiled code."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [word, word, word])
        builder.call(builder.inttoptr(args[0], function.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), codegen


# --- memory as kernels see it -------------------------------------------------------------------
# Compiled code gets pointers: indexing one has neither the bounds check nor the wraparound of
# negative indices that keep Numba's arrays from being vectorised.

if DISABLED:

    def fields(address: int, record: np.dtype) -> Any:
        buffer = (ctypes.c_byte * record.itemsize).from_address(int(address))
        return np.recarray(1, record, buffer)[0]

    def reals(address: int, bits: int) -> Any:
        mark, width = divmod(bits, SIGNED)
        name = ("float" if width == 32 else "double", f"int{width}", f"uint{width}")[mark]
        return ctypes.cast(int(address), ctypes.POINTER(getattr(ctypes, f"c_{name}")))

    def ints(address: int) -> Any:
        return ctypes.cast(int(address), ctypes.POINTER(ctypes.c_int64))

else:

    def _cast(target: types.Type) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(target))

        return codegen

    @intrinsic
    def fields(typingctx: Any, address: Any, record: Any) -> Any:
        """The record at `address`, its fields as attributes."""
        # to compiled code a record is a pointer to its bytes; by way of `numba.carray` each kernel would
        # take 0.1 s longer to compile
        if not isinstance(record, types.DType):
            return None
        return record.dtype(types.intp, record), _cast(record.dtype)

    @intrinsic(prefer_literal=True)
    def reals(typingctx: Any, address: Any, bits: Any) -> Any:
        """A pointer to float32 or float64, or to ints, by `bits`, which must be a constant."""
        if not isinstance(bits, types.IntegerLiteral):
            return None
        mark, width = divmod(bits.literal_value, SIGNED)
        letters = ("float", "int", "uint")
        pointer = types.CPointer(getattr(types, f"{letters[mark]}{width}"))
        return pointer(types.intp, bits), _cast(pointer)

    @intrinsic
    def ints(typingctx: Any, address: Any) -> Any:
        """A pointer to int64."""
        pointer = types.CPointer(types.int64)
        return pointer(types.intp), _cast(pointer)


def _data_field() -> int | None:
    """Bytes from an array object's own address to its pointer to the data, or None where that is elsewhere.

    NumPy's C interface fixes it: the pointer follows Python's object header. Other Pythons have other ids.
    """
    offset = object.__basicsize__
    for size in (1, 7):
        probe = np.empty(size)
        if ctypes.c_void_p.from_address(id(probe) + offset).value != probe.ctypes.data:
            return None
    return offset


_DATA_FIELD = _data_field() if sys.implementation.name == "cpython" else None


def address_of(array: np.ndarray, at: Any = ctypes.c_void_p.from_address) -> int:
    """Address of an array's first cell; the caller keeps the array alive while it is used."""
    if _DATA_FIELD is None:
        return int(array.__array_interface__["data"][0])
    # 0.2 us; by way of the array interface it is 1 us, and a small convolution takes 5
    return at(id(array) + _DATA_FIELD).value or 0
