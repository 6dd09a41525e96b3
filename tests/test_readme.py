"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import HOME

import fastconv
from fastconv import jit
from fastconv.__main__ import _offered

README = (HOME / "README.md").read_text() if (HOME / "README.md").exists() else ""

pytestmark = pytest.mark.skipif(not README, reason="the README lies beside the sources only")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_programs_run(tmp_path: Path, monkeypatch: Any) -> None:
    """One after the other, in a folder of their own, on data that they do not make themselves."""
    rng = np.random.default_rng(0)
    images, labels = rng.random((20, 1, 28, 28), np.float32), np.arange(20) % 10
    monkeypatch.chdir(tmp_path)
    programs = blocks("python")
    assert len(programs) >= 2
    names: dict[str, Any] = {"np": np}
    absent = []
    for program in programs:
        names.update(x=images, labels=labels, x_test=images, labels_test=labels)
        try:
            exec(compile(program, "README.md", "exec"), names)
        except ModuleNotFoundError as error:
            absent.append(str(error.name))
    assert not [name for name in absent if name.startswith(("fastconv", "None"))]
    assert len(absent) < len(programs) - 1
    assert (tmp_path / "digits.safetensors").exists() or "safetensors" in absent


def test_commands_are_those_that_there_are() -> None:
    (listing,) = [block for block in blocks("text") if block.startswith("fastconv info")]
    shown = dict(line.removeprefix("fastconv ").split(maxsplit=1) for line in listing.splitlines())
    assert shown == {name: entry.help for name, entry in _offered().items()}


def test_extras_are_those_that_there_are() -> None:
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    listed = re.findall(r"^\| `(\w+)` \| .* \| .* \|$", README.partition("## How fast")[0], re.M)
    assert sorted(listed) == sorted(project["optional-dependencies"])


def test_algorithms_are_those_that_there_are() -> None:
    listed = re.findall(r"^\| `(\w+)` \| .* \| `fastconv/(\w+(?:/\w+)*)\.py` \|$", README, re.M)
    assert {name for name, _ in listed} == set(fastconv.ALGORITHMS) - {"auto"}
    for _, file in listed:
        assert (HOME / "fastconv" / f"{file}.py").exists()


@pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: the plan is another one")
def test_the_plan_is_what_is_printed() -> None:
    """But for what depends on the processor and its threads."""
    (shown,) = [block for block in blocks("text") if block.startswith(">>> print(fastconv.explain")]
    call, *lines = shown.splitlines()
    plan = str(eval(call.removeprefix(">>> print(").removesuffix(")"), {"fastconv": fastconv})).splitlines()
    machine = ("  workspace", "  tile", "  lanes", "  block", "  tasks", "  weight", "  not ", "  algorithm")
    for line in lines:
        if not line.startswith(machine):
            assert line in plan
    assert [line.split(":")[0] for line in lines if line.startswith("  not ")] == [
        line.split(":")[0] for line in plan if line.startswith("  not ")
    ]
