"""What the benchmarks themselves must get right: checks, counts of flops, tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv
from benchmarks import race, table
from benchmarks.layers import CONV_LAYERS, TINY_LAYERS


def results() -> dict[str, Any]:
    case = {
        "operation": "conv2d forward",
        "layer": "conv1",
        "shape": "1x3x8x8 -> 4",
        "algorithm": "im2col",
        "rounds": 5,
        "work": 2e6,
        "unit": "GFLOP/s",
        "fastconv": 0.001,
        "peers": {"torch": 0.002, "numpy": 0.01},
        "left_out": {"scipy": "not installed"},
    }
    machine = {
        "cpu": {"brand_raw": "Some CPU"},
        "system": "Linux",
        "python_version": "3.12.0",
        "conditions": {
            "versions": {"fastconv": "1.0"},
            "cores": 2,
            "threads": 2,
            "threading layer": "omp",
            "BLAS": "openblas",
            "environment": {"MALLOC_TRIM_THRESHOLD_": "not set"},
            "weights prepacked": "no",
            "times": "medians",
        },
    }
    slower = {**case, "layer": "conv2", "peers": {"torch": 0.008}}
    cases = [case, slower, {**case, "operation": "conv2d backward"}]
    return {"machine_info": machine, "benchmarks": [{"extra_info": case} for case in cases]}


def test_report() -> None:
    text = table.report(results(), markdown=True)
    assert "### conv2d forward\n" in text
    assert "| conv1          | 1x3x8x8 -> 4 | im2col    |      5 | 1.00 |    2.00 |  2.00 | " in text
    assert "10.0 (1 of 2)" in text
    assert "Not measured: scipy: not installed." in text
    assert "MALLOC_TRIM_THRESHOLD_=not set" in text


def test_selection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results()))
    table.main([str(file), "--operation", "forward", "--peer", "torch"])
    text = capsys.readouterr().out
    assert "torch" in text
    assert "numpy" not in text
    assert "backward" not in text


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("{", [], "cannot read"),
        ('{"machine_info": {}, "benchmarks": []}', [], "no result of this repository"),
        (json.dumps(results()), ["--operation", "pool"], "no operation contains 'pool'"),
    ],
)
def test_unusable_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, arguments: list[str], message: str
) -> None:
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(SystemExit):
        table.main([str(file), *arguments])
    assert message in capsys.readouterr().err


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "ratios.png"
    table.plot(results(), file)
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("layer", [*CONV_LAYERS, *TINY_LAYERS], ids=lambda layer: layer.name)
def test_flops(layer: Any) -> None:
    facts = (layer.x_shape, layer.weight_shape, layer.stride, layer.padding, 1, layer.groups)
    assert fastconv.explain(*facts).flops == layer.flops


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.array([1.0, np.nan], np.float32), "wrong by nan"),
        (np.array([1.0, 2.01], np.float32), "wrong by 0.00632 of its size"),
        (np.ones((2, 1), np.float32), r"has shape \(2, 1\), expected \(2,\)"),
        ((np.ones(2), np.ones(2)), "2 results, expected 1"),
    ],
)
def test_wrong_results_are_found(result: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        race.check("some", result, np.array([1.0, 2.0]), np.float32)


def test_wrong_indices_are_found() -> None:
    with pytest.raises(AssertionError, match="result 0 is wrong"):
        race.check("some", np.array([1, 2]), np.array([1, 3]), np.float32)


def test_pace() -> None:
    pace = race.Pace(seconds=1.0, least=5)
    assert pace.next_case() == (1.0, 5)
    pace.start -= 100
    assert pace.next_case() == (0.0, 1)
    pace.start += 100
    assert pace.next_case() == (1.0, 5)
