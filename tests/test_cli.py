"""The command line: what it offers, what it imports, and its benchmark."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from processes import HOME, python

import fastconv
from fastconv import __main__ as cli
from fastconv import bench, jit

TINY = (
    bench.Layer("plain", (2, 3, 8, 9), 4, 3, stride=2, padding=1),
    bench.Layer("depthwise", (1, 4, 6, 6), 4, 3, groups=4),
    bench.Layer("pooling", (1, 2, 6, 6), 0, 2, stride=2),
)


def refusal(capsys: Any, *arguments: str) -> str:
    """What is said before exit code 2."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    return str(capsys.readouterr().err)


@pytest.mark.parametrize("command", sorted(cli._offered()))
def test_help(command: str, capsys: Any) -> None:
    """Of all commands together, and of each."""
    for arguments in (["--help"], [command, "--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert command in shown
        if arguments == ["--help"]:
            assert cli.COMMANDS[command].help in shown
        else:
            assert "%(" not in shown
            # a description, between the usage and the options
            assert len(re.split(r"\n\n", shown)[1].split()) > 5


def test_version_and_wrong_commands(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fastconv {fastconv.__version__}\n"
    assert "required: COMMAND" in refusal(capsys)
    assert "invalid choice: 'trane'" in refusal(capsys, "trane")
    assert "unrecognized arguments: --fast" in refusal(capsys, "info", "--fast")


def test_the_script_is_the_module() -> None:
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"fastconv": "fastconv.__main__:main"}
    for entry in cli._offered().values():
        assert not entry.extra or entry.extra in project["optional-dependencies"]


@pytest.mark.parametrize(
    ("argv", "name"),
    [("/usr/bin/fastconv", "fastconv"), ("/lib/fastconv/__main__.py", "python -m fastconv")],
)
def test_program_is_what_was_typed(argv: str, name: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", [argv])
    assert f"usage: {name} " in refusal(capsys)


def test_what_is_missing_is_named_with_its_extra(monkeypatch: Any, capsys: Any) -> None:
    """Before the module that needs it is imported; where it is there, the command gets its options."""
    done: list[Any] = []

    def configure(parser: Any) -> None:
        parser.add_argument("model")

    module = SimpleNamespace(configure=configure, run=lambda *given: done.append(given) or 3)
    entry = cli.COMMANDS["onnx"]._replace(load=lambda: module)
    monkeypatch.setattr(cli, "_offered", lambda: {"onnx": entry})
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["fastconv"])
    assert 'fastconv onnx: error: it needs onnx: pip install "fastconv[onnx]"' in refusal(capsys, "onnx", "m")
    monkeypatch.setattr(cli, "find_spec", lambda name: name)
    assert cli.main(["onnx", "net.onnx"]) == 3
    ((arguments, prog),) = done
    assert (arguments.model, prog) == ("net.onnx", "fastconv onnx")


def test_commands_import_what_they_need() -> None:
    loaded = python(
        "import sys; from fastconv.__main__ import main; main(['info']); print('::', *sys.modules)"
    ).partition("::")[2]
    assert "fastconv.warmup" in loaded
    for name in ("fastconv.nn", "fastconv.mnist", "fastconv.bench", "fastconv.onnx", "matplotlib", "torch"):
        assert name not in loaded.split()


# --- bench --------------------------------------------------------------------------------------


def test_bench(monkeypatch: Any, capsys: Any) -> None:
    """A line for each layer, with a ratio for each contender that is installed and fast enough."""
    monkeypatch.setattr(bench, "LAYERS", TINY)
    assert cli.main(["bench", "--seconds", "0", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    lines = {line.split("  ")[0].strip(): line for line in shown.splitlines()}
    for layer in TINY:
        assert str(layer) in lines[layer.name]
    cells = lines["geometric mean"].split()[2:]
    assert len(cells) == len(bench.CONTENDERS) - 1
    for name, cell in zip(list(bench.CONTENDERS)[1:], cells, strict=True):
        packages = ("onnx", "onnxruntime") if name == "onnxruntime" else (name,)
        installed = all(importlib.util.find_spec(package) for package in packages)
        assert (float(cell) > 0) if installed else (cell == "-" and f"-: {name} is not installed" in shown)


def test_bench_checks_what_it_times(monkeypatch: Any) -> None:
    def wrong(layer: bench.Layer, x: np.ndarray, weight: np.ndarray) -> Callable[[], np.ndarray]:
        right = bench._fastconv(layer, x, weight)
        return lambda: right() * np.float32(1.01)

    monkeypatch.setitem(bench.CONTENDERS, "torch", wrong)
    with pytest.raises(ArithmeticError, match=r"torch is wrong by 0\.0\d+ on plain"):
        bench.line_up(TINY[0])


def test_bench_counts_flops() -> None:
    """As the plan of the same convolution does."""
    for layer in (*bench.LAYERS, *TINY):
        if layer.filters:
            weight = (layer.filters, layer.x_shape[1] // layer.groups, layer.kernel, layer.kernel)
            facts = (layer.stride, layer.padding, 1, layer.groups)
            assert layer.flops == fastconv.explain(layer.x_shape, weight, *facts).flops


@pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: there is one thread")
def test_bench_with_too_many_threads(capsys: Any) -> None:
    assert cli.main(["bench", "--threads", "100000"]) == 2
    assert "bench: error: num_threads: n must be from 1 to" in capsys.readouterr().err
