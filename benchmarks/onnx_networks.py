"""Whole networks: seconds of an image through the plain ONNX reference evaluator, fastconv and ONNX Runtime.

    python benchmarks/onnx_networks.py
    python benchmarks/onnx_networks.py resnet50 vgg19 --rounds 10 --markdown

The networks are the nine of ONNX's own tests, which come with the ``onnx`` package without their weights:
nodes make constants in their place. Here they get random weights, as initialisers, the same for all
contenders; with ``--as-stored`` they run as they are. Before the clock starts each contender has run:
fastconv and ONNX Runtime have packed the weights then. "error" is the largest difference from ONNX Runtime's
results before the softmax, as a part of the largest of these. The plain evaluator's is large where it
departs from the standard, as in batch normalisation of old models (see `fastconv.onnx.around`). The settings
of `benchmarks.conditions.FAIR` count here, too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script it finds only its own folder

import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import fastconv
from benchmarks import conditions
from benchmarks.contenders import Contender, LeftOut, load
from benchmarks.race import Rounds
from benchmarks.table import Row, aligned
from fastconv.onnx import OPS

FOLDER = Path(importlib.import_module("onnx.backend.test.loader").DATA_DIR) / "light"
NAMES = sorted(file.stem.removeprefix("light_") for file in FOLDER.glob("*.onnx"))

HEADER = ("network", "plain s", "fastconv s", "onnxruntime s", "plain / fastconv", "fastconv / onnxruntime")
ERRORS = ("fastconv's error", "plain's error")


def network(name: str, as_stored: bool = False) -> Any:
    """One of the nine, with random weights."""
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    if not as_stored:
        fill(model)
    last = model.graph.node[-1]
    if last.op_type == "Softmax":  # of which one is 1 and the others 0: what comes in says more
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(last.input[0], onnx.TensorProto.FLOAT, None)
        )
    return model


def fill(model: Any, seed: int = 0) -> None:
    """Put random initialisers in the place of constants, and of what batch normalisation has."""
    rng = np.random.default_rng(seed)
    graph = model.graph
    given = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    constants = {n.output[0]: given[n.input[0]] for n in graph.node if n.op_type == "ConstantOfShape"}
    shapes = {name: tuple(shape.tolist()) for name, shape in constants.items()}
    uses = {name: (n.op_type, place) for n in graph.node for place, name in enumerate(n.input)}
    shapes |= {
        name: given[name].shape
        for name, use in uses.items()
        if use[0] == "BatchNormalization" and name in given
    }
    drawn = {name: weights(uses.get(name, ("", 0)), shape, rng) for name, shape in shapes.items()}
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    kept = [item for item in graph.initializer if item.name not in drawn]
    kept += [numpy_helper.from_array(array, name) for name, array in drawn.items()]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def weights(use: tuple[str, int], shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Numbers for an input of an operator that keep the size of what flows through the network.

    >>> weights(("Conv", 1), (4, 3, 5, 5), np.random.default_rng(0)).shape
    (4, 3, 5, 5)
    """
    normal = rng.standard_normal(shape, np.float32)
    if use in (("Conv", 1), ("Gemm", 1)):
        normal *= np.float32(np.sqrt(2 / np.prod(shape[1:])))  # He's
        return normal
    if use in (("Conv", 2), ("Gemm", 2), ("BatchNormalization", 2), ("BatchNormalization", 3)):
        return normal / 10
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)


def contenders(model: Any) -> dict[str, Contender]:
    """The two or three, each a call that gives the network's results for one random image."""
    given = {item.name for item in model.graph.initializer}
    rng = np.random.default_rng(1)
    feeds = {
        item.name: rng.standard_normal(
            [size.dim_value for size in item.type.tensor_type.shape.dim], np.float32
        )
        for item in model.graph.input
        if item.name not in given
    }
    plain, mine = ReferenceEvaluator(model), ReferenceEvaluator(model, new_ops=OPS)
    found = {
        "plain": Contender(lambda: plain.run(None, feeds)[-1]),
        "fastconv": Contender(lambda: mine.run(None, feeds)[-1]),
    }
    with contextlib.suppress(LeftOut):  # not installed: the table has dashes
        found["onnxruntime"] = runtime(model, feeds)
    return found


def runtime(model: Any, feeds: dict[str, np.ndarray]) -> Contender:
    """ONNX Runtime."""
    onnxruntime = load("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = fastconv.get_num_threads()
    options.inter_op_num_threads = 1
    # else its idle threads keep the cores of whoever is timed next busy
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return Contender(lambda: session.run(None, feeds)[-1])


def measure(name: str, rounds: int, as_stored: bool) -> Row:
    """A network's row of the table."""
    found = contenders(network(name, as_stored))
    results = {key: contender.call() for key, contender in found.items()}
    race = Rounds(found, 0, rounds)
    for _ in range(rounds):
        race.run_one()
    plain, mine = (statistics.median(race.times[key]) for key in ("plain", "fastconv"))
    cells = [name, f"{plain:.3f}", f"{mine:.3f}"]
    if "onnxruntime" not in found:
        return [*cells, "-", f"{plain / mine:.1f}", "-", "-", "-"]
    other, exact = statistics.median(race.times["onnxruntime"]), results["onnxruntime"]
    errors = (abs(results[key] - exact).max() / abs(exact).max() for key in ("fastconv", "plain"))
    ratios = [f"{other:.3f}", f"{plain / mine:.1f}", f"{mine / other:.2f}"]
    return [*cells, *ratios, *(f"{error:.0e}" for error in errors)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "networks", nargs="*", metavar="NETWORK", help=f"some of {', '.join(NAMES)} (default: all)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="of which the medians are taken (default: 5)"
    )
    parser.add_argument("--as-stored", action="store_true", help="with constants for weights")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)
    if unknown := set(options.networks) - set(NAMES):
        parser.error(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if missing := conditions.missing_settings():
        print(f"set before Python starts, for fair times: {' '.join(missing)}", file=sys.stderr)
    with conditions.same_threads():
        rows = [measure(name, options.rounds, options.as_stored) for name in options.networks or NAMES]
    print(
        f"seconds for an image on {fastconv.get_num_threads()} threads, "
        f"medians of {options.rounds} interleaved rounds\n"
    )
    print(aligned([[*HEADER, *ERRORS], *rows], options.markdown))


if __name__ == "__main__":
    main()
