"""The Python of README.md runs as typed, block by block, and does what the text around it says."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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


BLOCKS = read_blocks(README.read_text(encoding="utf-8"))


# --- what a block may take for granted, and what must be true behind it ------------------------------


def some_digits() -> Namespace:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((64, 1, 28, 28), np.float32), rng.integers(0, 10, 64)
    return {"x": x, "labels": labels, "x_test": x[:10], "labels_test": labels[:10]}


GIVEN: dict[str, Callable[[], Namespace]] = {"Networks": some_digits}


def check_start(names: Namespace) -> None:
    assert names["y"].shape == (32, 16, 64, 64)
    assert [part.shape for part in names["grads"]] == [(32, 3, 64, 64), (16, 3, 3, 3), (16,)]


def check_networks(names: Namespace) -> None:
    assert len(names["history"].val_loss) == 10
    assert Path("digits.safetensors").stat().st_size > 60_000


CHECKS: dict[str, Callable[[Namespace], None]] = {
    "fastconv": check_start,
    "Networks": check_networks,
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
    names: Namespace = {"__name__": "readme", **GIVEN.get(block.heading, dict)()}
    code = "\n" * (block.line - 1) + block.code  # so that errors tell the line of README.md
    exec(compile(code, str(README), "exec"), names)
    if block.heading in CHECKS:
        CHECKS[block.heading](names)
