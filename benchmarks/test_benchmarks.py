"""What the benchmarks themselves must get right: checks, counts of flops, tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv
from benchmarks import (
    accuracy,
    first_call,
    numpy_ops,
    peers,
    race,
    roofline,
    scaling,
    steps,
    table,
    yardsticks,
)
from benchmarks.contenders import LineUp
from benchmarks.layers import (
    CONV_LAYERS,
    CONV_OPERATIONS,
    POOL_OPERATIONS,
    TINY_LAYERS,
    ConvLayer,
    PoolLayer,
    conv_data,
    pool_data,
)
from fastconv.jit import DISABLED


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
        "yardstick": {"name": "FMA peak", "seconds": 0.001, "work": 4e6},
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
            "FMA peak": {"float32": {"1": 110e9, "2": 216.4e9}},
        },
    }
    slower = {**case, "layer": "conv2", "peers": {"torch": 0.008}}
    step = {name: value for name, value in case.items() if name != "yardstick"}
    step.update(operation="training step", unit="images/s", work=64)
    cases = [case, slower, {**case, "operation": "conv2d backward"}, step]
    return {"machine_info": machine, "benchmarks": [{"extra_info": case} for case in cases]}


def test_report() -> None:
    text = table.report(results(), markdown=True)
    assert "### conv2d forward\n" in text
    assert (
        "| conv1          | 1x3x8x8 -> 4 | im2col    |      5 | 1.00 |    2.00 |        50 % |  2.00 | "
        in text
    )
    assert (
        "FMA peak of the micro-kernel: float32 110 GFLOP/s on 1 thread, float32 216 GFLOP/s on 2 threads"
        in text
    )
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
    table.plot_ratios(results(), file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_roofline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Drawn where the traffic and the bandwidth were measured; else it says what is missing."""
    pytest.importorskip("matplotlib")
    found, image = results(), tmp_path / "roofline.png"
    source = tmp_path / "results.json"
    source.write_text(json.dumps(found))
    with pytest.raises(SystemExit):
        table.main([str(source), "--plot", str(image)])
    assert "lack the traffic" in capsys.readouterr().err
    assert not image.exists()
    found["machine_info"]["conditions"]["memory"] = {"1": 20e9, "2": 30e9}
    for case in found["benchmarks"]:
        case["extra_info"]["traffic"] = 1e5
    copy = {"name": "copy", "seconds": 0.001, "work": 3e7}
    pool = {**case["extra_info"], "operation": "max_pool2d", "unit": "GB/s", "work": 2e7, "yardstick": copy}
    found["benchmarks"].append({"extra_info": pool})
    source.write_text(json.dumps(found))
    table.main([str(source), "--plot", str(image), "--ratios", str(tmp_path / "ratios.png")])
    assert "memory, copied: 20 GB/s on 1 thread, 30 GB/s on 2 threads" in capsys.readouterr().out
    assert image.read_bytes().startswith(b"\x89PNG")


def test_the_roof_is_memory_or_multiply_adds() -> None:
    case = {"work": 8e6, "traffic": 4e6, "unit": "GFLOP/s"}
    assert roofline.roof(case, 200e9, 30e9) == 60e9
    assert roofline.roof(case, 50e9, 30e9) == 50e9


@pytest.mark.skipif(DISABLED, reason="NUMBA_DISABLE_JIT: there is nothing to measure")
def test_what_the_bandwidth_copies() -> None:
    """Every byte, for a size that the threads do not share evenly."""
    copy = yardsticks.Copy(3, 64 * 1001)
    np.testing.assert_array_equal(copy.call(), copy.source)


STEPS_LAYER = ConvLayer("conv", "net", 2, 16, 12, 16, 3, padding=1)


@pytest.mark.parametrize("step", [steps.loops, steps.windows, steps.im2col, steps.winograd])
def test_the_steps_of_the_documentation(step: Any) -> None:
    """Each computes a convolution; that of loops is slow, so it gets less of it."""
    layer = (
        STEPS_LAYER._replace(batch=1, in_channels=2, out_channels=2) if step is steps.loops else STEPS_LAYER
    )
    data = conv_data(layer)
    expected = numpy_ops.forward(layer, data._replace(bias=0 * data.bias).astype(np.float64))
    race.check("step", step(steps.padded(layer, data), data.weight), expected, np.float32)


@pytest.mark.skipif(DISABLED, reason="NUMBA_DISABLE_JIT: it is LLVM's code")
def test_the_tile_of_the_documentation() -> None:
    """It is compared with NumPy before it is timed."""
    assert steps.tile_rate(2, 1, products=2) > 0


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


@pytest.mark.skipif(DISABLED, reason="takes too long without the compiler")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_the_peak_computes(dtype: Any) -> None:
    """Every tile of every thread: a peak that skipped work would be too high."""
    peak = yardsticks.Peak(dtype, 2)
    peak.c[:] = np.nan
    race.check("peak", peak.call(), peak.expected(), dtype)
    assert peak.flops == 2 * yardsticks.TILES * peak.depth * peak.c.size


def test_what_a_copy_moves() -> None:
    arrays = [np.ones(5), np.ones(3, np.int64)]
    yardstick = yardsticks.copy_of(arrays)
    yardstick.call()
    assert yardstick.work == 2 * 64


@pytest.mark.skipif(DISABLED, reason="the other contender takes too long without the compiler")
@pytest.mark.parametrize("peer", ["onnxruntime", "openvino", "opencv", "torch", "jax"])
@pytest.mark.parametrize("op", CONV_OPERATIONS)
@pytest.mark.parametrize("groups", [1, 2])
def test_optional_peers_convolve(peer: str, op: str, groups: int) -> None:
    layer = ConvLayer("small", "test", 2, 4, 7, 6, 3, stride=2, padding=1, groups=groups)
    data = conv_data(layer)
    line_up = peers.conv_line_up(op, layer, data, [peer])
    expected = numpy_ops.conv(op, layer, data.astype(np.float64))
    check_all(line_up, peer, expected)


@pytest.mark.skipif(DISABLED, reason="the other contender takes too long without the compiler")
@pytest.mark.parametrize("peer", ["onnxruntime", "jax"])
@pytest.mark.parametrize("op", POOL_OPERATIONS)
def test_optional_peers_pool(peer: str, op: str) -> None:
    layer = PoolLayer("small", "test", 2, 3, 7, 3, 2, padding=1)
    data = pool_data(layer)
    _, indices = numpy_ops.max_pool2d_with_indices(layer, data)
    line_up = peers.pool_line_up(op, layer, data, indices, [peer])
    check_all(line_up, peer, numpy_ops.pool(op, layer, data.astype(np.float64), indices))


def check_all(line_up: LineUp, peer: str, expected: Any) -> None:
    reasons = [reason for name, reason in line_up.left_out.items() if name.startswith(peer)]
    if reasons:
        pytest.skip(f"{peer}: {reasons[0]}")
    for name, contender in line_up.contenders.items():
        with contender.context():
            race.check(name, contender.logical(contender.call()), expected, np.float32)


def test_only_peers_that_are_asked_for() -> None:
    layer = TINY_LAYERS[0]
    line_up = peers.conv_line_up("forward", layer, conv_data(layer), ["numpy"])
    names = {name.split()[0] for name in (*line_up.contenders, *line_up.left_out)}
    assert names == {"fastconv", "numpy"}


@pytest.mark.skipif(DISABLED, reason="takes too long without the compiler")
def test_scaling(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(["--layer", "mnist1", "--threads", "1", "--seconds", "0.01"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("fastconv         1") for line in lines)
    assert any(line.startswith("FMA peak         1") for line in lines)


def test_first_call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {first_call.FASTCONV: {"first conv2d": 1.25}, first_call.TRIVIAL: {first_call.FLOOR: 0.5}}
    monkeypatch.setattr(first_call, "measure", lambda program, folder: steps[program])
    first_call.main(["--processes", "1"])
    output = capsys.readouterr().out
    assert "first conv2d            1.2500        1.2500" in output
    assert "trivial njit            0.5000        0.5000" in output


@pytest.mark.skipif(DISABLED, reason="takes too long without the compiler")
@pytest.mark.parametrize("op", ["forward", "input_grad"])
def test_accuracy(capsys: pytest.CaptureFixture[str], op: str) -> None:
    accuracy.main(["--channels", "16", "64", "--size", "12", "--op", op])
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("im2col"))
    largest, rms, *_ = (float(cell) for cell in line.split()[1:])
    assert 0 < rms < largest < 1e-5
