"""The recipes of README.md run as typed, block by block, and do what the text around them says."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"

Namespace = dict[str, Any]


class Block(NamedTuple):
    """Code, and the heading that it is the first, second, .. block under."""

    heading: str
    code: str
    line: int


def read_blocks(text: str) -> list[Block]:
    r"""The Python blocks of a Markdown text; `#` within a block is no heading.

    >>> text = "# One\n```python\n# a remark\n```\n## Two\n```sh\nls\n```\n```python\ny = 2\n```\n"
    >>> for block in read_blocks(text):
    ...     print(block)
    Block(heading='One', code='# a remark\n', line=3)
    Block(heading='Two', code='y = 2\n', line=10)
    """
    blocks, heading, language, start = [], "", None, 0
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            if language is None:
                language, start = line.strip("` \n"), number
                continue
            if language == "python":
                blocks.append(Block(heading, "".join(lines[start : number - 1]), start + 1))
            language = None
        elif language is None and (match := re.match(r"#+ +(.*)", line)):
            heading = match[1].strip()
    assert language is None, f"the block of line {start} does not end"
    return blocks


RECIPES = README.read_text(encoding="utf-8").partition("\n## Recipes\n")[2].partition("\n## ")[0]
BLOCKS = read_blocks(RECIPES)


# --- what must be true behind a block ---------------------------------------------------------------


def check_losses(names: Namespace) -> None:
    assert names["losses"][-1] < 0.5 * names["losses"][0]


def check_torch(names: Namespace) -> None:
    assert names["y"].shape == (4, 10)
    assert names["y"].std() > 0.1


def check_sklearn(names: Namespace) -> None:
    assert names["accuracy"] > 0.9


def check_keras(names: Namespace) -> None:
    assert names["y"].shape == (2, 7, 7, 8)


def check_cs231n(names: Namespace) -> None:
    assert [names[name].shape for name in ("dx", "dw", "db")] == [(2, 3, 32, 32), (8, 3, 3, 3), (8,)]


def check_onnx(names: Namespace) -> None:
    assert names["y"].shape == (1, 1000, 1, 1)


def check_integers(names: Namespace) -> None:
    assert names["sums"].dtype == "int32"
    assert names["y_u8"].dtype == "uint8"
    assert names["y"].shape == (1, 8, 9, 9)


def check_dask(names: Namespace) -> None:
    assert names["y"].shape == (1, 8, 2048, 2048)


CHECKS: dict[str, Callable[[Namespace], None]] = {
    "A layer class of your own": check_losses,
    "autograd": check_losses,
    "Weights from PyTorch": check_torch,
    "scikit-learn": check_sklearn,
    "Keras's functions": check_keras,
    "CS231n": check_cs231n,
    "ONNX models": check_onnx,
    "Integers, and windows that move": check_integers,
    "Beyond memory, beyond one machine": check_dask,
}


def test_blocks_are_there() -> None:
    """One under each heading that is known here, so that no check is lost with a heading."""
    headings = [block.heading for block in BLOCKS]
    assert [headings.count(heading) for heading in CHECKS] == [1] * len(CHECKS)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.heading)
def test_block(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder; without a package that it needs and is not installed it is skipped."""
    monkeypatch.chdir(tmp_path)
    for package in re.findall(r"^(?:from|import) +(\w+)", block.code, re.M):
        try:
            importlib.import_module(package)
        except ImportError:
            pytest.skip(f"{package} is not installed")
    names: Namespace = {"__name__": "recipe"}
    code = "\n" * (block.line - 1) + block.code  # so that errors tell the line, counted from the heading on
    exec(compile(code, str(README), "exec"), names)
    if block.heading in CHECKS:
        CHECKS[block.heading](names)
