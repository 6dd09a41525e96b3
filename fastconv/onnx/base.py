"""What the operators share: attributes by the model's opset, and weights packed once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op

from fastconv import functional
from fastconv.arguments import Padding

#: ONNX's names of padding in fastconv's.
_AUTO_PADS: dict[str, str] = {"VALID": "valid", "SAME_UPPER": "same", "SAME_LOWER": "same_lower"}


class Operator(OpRun):
    """An operator whose attributes, and their defaults, are those of the model's opset.

    What a class does not compute itself it leaves to the evaluator's own, `plain`.
    """

    def __init__(self, onnx_node: Any, run_params: dict[str, Any], schema: Any = None) -> None:
        domain = onnx_node.domain
        self.version: int = run_params["opsets"][domain]
        if schema is None:
            schema = onnx.defs.get_schema(onnx_node.op_type, self.version, domain)
        super().__init__(onnx_node, run_params, schema)

    def plain(self, *inputs: Any) -> tuple[Any, ...]:
        """The results of the evaluator's own operator."""
        own = load_op(self.onnx_node.domain, self.onnx_node.op_type, self.version)
        results: tuple[Any, ...] = own(self.onnx_node, self.run_params).run(*inputs)
        return results


def by_rank(function: str, rank: int) -> Any:
    """The function of that name for `rank` spatial axes."""
    if not 1 <= rank <= 3:
        raise ValueError(f"fastconv.onnx: {function} has 1 to 3 spatial axes, not {rank}")
    return getattr(functional, function.format(rank))


def padding(auto_pad: str | None, pads: Sequence[int] | None, rank: int) -> Padding:
    """Padding as fastconv takes it: ONNX lists all that come before, then all that come after.

    >>> padding("NOTSET", [1, 2, 3, 4], 2)
    [(1, 3), (2, 4)]
    >>> padding("SAME_UPPER", None, 2)
    'same'
    """
    if auto_pad and auto_pad != "NOTSET":
        return _AUTO_PADS[auto_pad]
    if not pads:
        return 0
    return list(zip(pads[:rank], pads[rank:], strict=True))


# --- what is made of a weight once ------------------------------------------------------------------


def is_frozen(array: np.ndarray) -> bool:
    """Whether no array through which its memory could be changed is known: as initialisers mostly are.

    >>> a = np.arange(3)
    >>> b = a[:]
    >>> b.flags.writeable = False
    >>> is_frozen(a), is_frozen(b), is_frozen(np.frombuffer(b"abc", np.uint8)[1:])
    (False, False, True)
    """
    memory: Any = array
    while isinstance(memory, np.ndarray):
        if memory.flags.writeable:
            return False
        memory = memory.base
    return memory is None or isinstance(memory, bytes)


class Kept:
    """What was made of some arrays, for as long as the same ones come.

    Arrays that cannot change are known by who they are. Others are compared with copies; and nothing is made
    of them when they come the first time, for they may be results of the graph, and others in every run.
    """

    def __init__(self) -> None:
        self._value: Any = None
        self._key: Any = None
        self._arrays: list[Any] = []
        self._copies: list[np.ndarray | None] = []

    def get(self, arrays: Sequence[np.ndarray], key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, now or before for the same arrays and an equal key; None to do without."""
        seen = len(arrays) == len(self._arrays) and all(
            reference() is array for reference, array in zip(self._arrays, arrays, strict=True)
        )
        frozen = [is_frozen(array) for array in arrays]
        if not seen:
            self._arrays = [weakref.ref(array) for array in arrays]
            self._value = None
            if not all(frozen):
                return None
        elif self._value is not None and key == self._key and self._unchanged(arrays):
            return self._value
        self._copies = [None if ok else array.copy() for ok, array in zip(frozen, arrays, strict=True)]
        self._key, self._value = key, make()
        return self._value

    def _unchanged(self, arrays: Sequence[np.ndarray]) -> bool:
        pairs = zip(arrays, self._copies, strict=True)
        return all(copy is None or np.array_equal(array, copy) for array, copy in pairs)
