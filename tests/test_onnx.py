"""ONNX's own tests of its operators, and its nine networks, by fastconv's classes."""

from __future__ import annotations

import importlib
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
numpy_helper = importlib.import_module("onnx.numpy_helper")
loader = importlib.import_module("onnx.backend.test.loader")
Runner = importlib.import_module("onnx.backend.test.runner").Runner
ReferenceEvaluator = importlib.import_module("onnx.reference").ReferenceEvaluator
OPS = importlib.import_module("fastconv.onnx").OPS

#: What fastconv is about: each of these operators must be its own.
OPERATORS = {
    "Conv",
    "ConvTranspose",
    "ConvInteger",
    "QLinearConv",
    "DeformConv",
    "Col2Im",
    "MaxPool",
    "AveragePool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
    "MaxUnpool",
}
DATA = Path(loader.DATA_DIR)


@pytest.fixture
def ran() -> Any:
    """Counts by operator how often fastconv's classes have computed something."""
    counts: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for operator in OPS:

            def run(self: Any, *args: Any, _run: Any = operator._run, **kwargs: Any) -> Any:
                counts[self.op_type] += 1
                return _run(self, *args, **kwargs)

            patch.setattr(operator, "_run", run)
        yield counts


def wanted(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node if node.op_type in OPERATORS)


def array(item: Any) -> Any:
    return numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else item


def check(model: Any, inputs: Any, outputs: Any, rtol: float, atol: float, ran: Counter[str]) -> None:
    """Run a model by fastconv, compare as ONNX's runner does, and see that fastconv ran what it should."""
    evaluator = ReferenceEvaluator(model, new_ops=OPS)
    names = [name for name in evaluator.input_names if name not in evaluator.rt_inits_]
    feeds = {name: array(item) for name, item in zip(names, inputs, strict=False)}
    results = evaluator.run(None, feeds)
    Runner.assert_similar_outputs([array(item) for item in outputs], results, rtol, atol)
    assert wanted(model)
    assert {name: ran[name] for name in OPERATORS if ran[name]} == wanted(model)


with warnings.catch_warnings():  # they are made when they are loaded, not all without one
    warnings.simplefilter("ignore")
    NODES = [case for case in loader.load_node_model_tests() if wanted(case.model)]


def test_every_operator_has_cases() -> None:
    covered = set().union(*(wanted(case.model) for case in NODES))
    assert covered | {"GlobalLpPool"} == OPERATORS  # of which ONNX has none
    assert len(NODES) > 90
    assert {operator.__name__ for operator in OPS} > OPERATORS


@pytest.mark.parametrize("case", NODES, ids=lambda case: case.name)
def test_node(case: Any, ran: Counter[str]) -> None:
    for inputs, outputs in case.data_sets:
        ran.clear()
        check(case.model, inputs, outputs, case.rtol, case.atol, ran)


def read(file: Path) -> Any:
    tensor = onnx.TensorProto()
    tensor.ParseFromString(file.read_bytes())
    return numpy_helper.to_array(tensor)


def converted() -> list[Any]:
    """The models that PyTorch wrote, with one of the operators."""
    cases = loader.load_model_tests(kind="pytorch-converted") + loader.load_model_tests(
        kind="pytorch-operator"
    )
    return sorted(
        (case for case in cases if wanted(onnx.load(Path(case.model_dir, "model.onnx")))),
        key=lambda case: str(case.name),
    )


@pytest.mark.parametrize("case", converted(), ids=lambda case: case.name)
def test_converted(case: Any, ran: Counter[str]) -> None:
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    sets = sorted(folder.glob("test_data_set_*"))
    assert sets
    for data in sets:
        inputs, outputs = (
            [read(data / f"{kind}_{i}.pb") for i in range(len(list(data.glob(f"{kind}_*.pb"))))]
            for kind in ("input", "output")
        )
        ran.clear()
        check(model, inputs, outputs, case.rtol, case.atol, ran)


NETWORKS = sorted(loader.load_model_tests(kind="real"), key=lambda case: str(case.name))


def test_there_are_nine_networks() -> None:
    assert len(NETWORKS) == 9


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_network(case: Any, ran: Counter[str]) -> None:
    """From the inputs that ONNX's runner makes, to the outputs that lie beside the models."""
    file = DATA / "light" / Path(case.url).name
    model = onnx.load(file)
    given = {item.name for item in model.graph.initializer}
    inputs = [Runner.generate_dummy_data(x) for x in model.graph.input if x.name not in given]
    outputs = [read(file.with_name(f"{file.stem}_output_{i}.pb")) for i in range(len(model.graph.output))]
    check(model, inputs, outputs, case.rtol, case.atol, ran)
