"""Which algorithm runs, why, and how to ask for another."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from oracles import assert_same
from strategies import Conv, convs

import fastconv
from fastconv.algorithms import OPERATIONS, Algorithm, Auto, PoolAlgorithm
from fastconv.plan import make_plan
from fastconv.shapes import ConvShape

X, WEIGHT = np.ones((2, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
GRAD = np.ones((2, 4, 6, 6), np.float32)


class Picky(Algorithm):
    """Serves 1-d signals alone, with sevens."""

    name = "picky"
    summary = "for signals"

    def supports(self, shape: ConvShape, dtype: np.dtype, op: str) -> str | None:
        return None if shape.rank == 1 else f"it knows signals alone, not {shape.rank} axes, for {op}"

    def forward(self, x: Any, weight: Any, bias: Any, relu: bool, out: np.ndarray, shape: ConvShape) -> None:
        out[...] = 7

    def input_grad(self, grad_output: Any, weight: Any, out: np.ndarray, shape: ConvShape) -> None:
        out[...] = 7

    def weight_grad(self, grad_output: Any, x: Any, out: np.ndarray, shape: ConvShape) -> None:
        out[...] = 7


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered, and the preferred one."""
    algorithm = Picky()
    others = [a for name, a in fastconv.ALGORITHMS.items() if name != "auto"]
    monkeypatch.setitem(fastconv.ALGORITHMS, "picky", algorithm)
    monkeypatch.setitem(fastconv.ALGORITHMS, "auto", Auto(algorithm, *others))
    make_plan.cache_clear()
    yield
    make_plan.cache_clear()


# --- the registry -------------------------------------------------------------------------------


def test_registries() -> None:
    assert {"auto", "naive", "im2col"} <= fastconv.ALGORITHMS.keys()
    assert {"auto", "naive", "im2col", "direct"} <= fastconv.POOL_ALGORITHMS.keys()
    for name, algorithm in fastconv.ALGORITHMS.items():
        assert algorithm.name == name
        assert isinstance(algorithm, Algorithm)
        assert algorithm.summary
    for name, pooling in fastconv.POOL_ALGORITHMS.items():
        assert name in (pooling.name, "auto")
        assert isinstance(pooling, PoolAlgorithm)
        assert pooling.summary


@pytest.mark.parametrize("name", ["naive", "im2col"])
@given(case=convs())
def test_references_serve_every_case(name: str, case: Conv) -> None:
    x, weight = case.give(case.x()), case.give_weight(case.weight())
    for op in OPERATIONS:
        plan = fastconv.explain(x.shape, weight.shape, **case.facts, dtype=case.dtype, op=op)
        assert fastconv.ALGORITHMS[name].supports(plan.shape, plan.dtype, op) is None


def test_a_registered_algorithm_runs(picky: None) -> None:
    x, weight, grad = X[..., 0], WEIGHT[..., 0], GRAD[..., 0]
    for name in ("picky", "auto"):
        assert (fastconv.conv1d(x, weight, algorithm=name) == 7).all()
        grads = fastconv.conv1d_backward(grad, x, weight, algorithm=name)
        assert (grads.x == 7).all()
        assert (grads.weight == 7).all()
        assert_same(grads.bias, np.full(4, 12.0))


def test_an_algorithm_that_cannot_says_why(picky: None) -> None:
    """A refusal, never a detour to another algorithm."""
    message = r"^{}: algorithm 'picky' cannot compute this {}: it knows signals alone, not 2 axes, for {}$"
    with pytest.raises(ValueError, match=message.format("conv2d", "forward", "forward")):
        fastconv.conv2d(X, WEIGHT, algorithm="picky")
    with pytest.raises(ValueError, match=message.format("conv2d_input_grad", "input_grad", "input_grad")):
        fastconv.conv2d_input_grad(GRAD, WEIGHT, X.shape, algorithm="picky")
    with pytest.raises(ValueError, match=message.format("conv2d_weight_grad", "weight_grad", "weight_grad")):
        fastconv.conv2d_weight_grad(GRAD, X, WEIGHT.shape, algorithm="picky")
    with pytest.raises(ValueError, match=message.format("conv2d_backward", "input_grad", "input_grad")):
        fastconv.conv2d_backward(GRAD, X, WEIGHT, algorithm="picky")
    with pytest.raises(ValueError, match=message.format("conv_transpose2d", "input_grad", "input_grad")):
        fastconv.conv_transpose2d(X, np.ones((3, 4, 3, 3), np.float32), algorithm="picky")


def test_refusals_come_even_where_there_is_nothing_to_do(picky: None) -> None:
    """N = 0 is no excuse."""
    with pytest.raises(ValueError, match="conv2d: algorithm 'picky' cannot"):
        fastconv.conv2d(X[:0], WEIGHT, algorithm="picky")
    with pytest.raises(ValueError, match="conv2d_input_grad: algorithm 'picky' cannot"):
        fastconv.conv2d_input_grad(GRAD[:0], WEIGHT, (0, 3, 8, 8), algorithm="picky")


def test_auto_passes_over_what_cannot(picky: None) -> None:
    assert_same(fastconv.conv2d(X, WEIGHT), np.full((2, 4, 6, 6), 27.0))
    plan = fastconv.explain(X.shape, WEIGHT.shape)
    assert plan.algorithm in ("direct", "im2col")
    assert plan.rejected["picky"] == "it knows signals alone, not 2 axes, for forward"
    plan = fastconv.explain(X.shape[:3], WEIGHT.shape[:3])
    assert plan.algorithm == "picky"
    assert plan.rejected["im2col"] == "slower than picky"


@pytest.mark.parametrize("name", ["im2Col", "", "winograd2", None, 3, ["im2col"]])
def test_unknown_algorithm(name: Any) -> None:
    """The error lists those that there are."""
    listing = ", ".join(map(repr, fastconv.ALGORITHMS))
    for run in (
        lambda: fastconv.conv2d(X, WEIGHT, algorithm=name),
        lambda: fastconv.conv2d_backward(GRAD, X, WEIGHT, algorithm=name),
        lambda: fastconv.conv_transpose2d(GRAD, WEIGHT, algorithm=name),
    ):
        with pytest.raises(ValueError, match=r"conv\w+: unknown algorithm .*; there are " + listing):
            run()
    listing = ", ".join(map(repr, fastconv.POOL_ALGORITHMS))
    with pytest.raises(ValueError, match=r"max_pool2d: unknown algorithm .*; there are " + listing):
        fastconv.max_pool2d(X, 2, algorithm=name)


# --- explain ------------------------------------------------------------------------------------


def test_plan_tells_the_story() -> None:
    plan = fastconv.explain(
        (64, 64, 56, 56), (128, 32, 3, 3), stride=2, padding=((0, 1), (1, 0)), groups=2, dtype="float64"
    )
    assert isinstance(plan, fastconv.Plan)
    assert (plan.op, plan.dtype) == ("forward", np.float64)
    assert plan.flops == 2 * 64 * 128 * 28 * 28 * 32 * 9
    assert plan.algorithm in fastconv.ALGORITHMS
    assert plan.algorithm != "auto"
    assert plan.reason
    assert plan.rejected.keys() | {plan.algorithm, "auto"} == fastconv.ALGORITHMS.keys()
    text = str(plan)
    for fact in (
        "conv2d forward, float64, NCHW: x (64, 64, 56, 56) -> y (64, 128, 28, 28)",
        "kernel (3, 3), stride (2, 2), padding [(0, 1), (1, 0)], dilation (1, 1), groups 2",
        f"{plan.algorithm}: {plan.reason}",
        f"{plan.flops:,}",
        f"{plan.workspace:,} bytes",
        "not naive: ",
    ):
        assert fact in text


class Rows(HTMLParser):
    """The text of a table's cells, row by row, and whether every tag is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if "td" in self.open:
            self.rows[-1][-1] += text


def test_plan_in_a_notebook() -> None:
    """The table has what is printed, and what would be HTML is text."""
    plan = fastconv.explain((64, 64, 56, 56), (128, 64, 3, 3), padding=1)
    page = plan._repr_html_()
    head, *rows = Rows(page).rows
    assert head == []  # whose cell is a heading
    assert all(len(row) == 2 for row in rows)
    assert ["algorithm", f"{plan.algorithm}: {plan.reason}"] in rows
    assert ["flops", f"{plan.flops:,}"] in rows
    for name, reason in plan.rejected.items():
        assert [f"not {name}", reason] in rows
    assert "x (64, 64, 56, 56) -&gt; y (64, 128, 56, 56)" in page
    odd = replace(plan, reason="<b> & 'c'", rejected={"<i>": "</td>"})
    assert ["algorithm", f"{plan.algorithm}: <b> & 'c'"] in Rows(odd._repr_html_()).rows
    assert ["not <i>", "</td>"] in Rows(odd._repr_html_()).rows


def test_plan_of_channels_last() -> None:
    plan = fastconv.explain((8, 32, 32, 3), (5, 5, 3, 10), layout="NHWC")
    assert "x (8, 32, 32, 3) -> y (8, 28, 28, 10)" in str(plan)


@given(case=convs())
def test_explain_takes_what_the_convolution_takes(case: Conv) -> None:
    x, weight = case.give(case.x()), case.give_weight(case.weight())
    for op in OPERATIONS:
        plan = fastconv.explain(x.shape, weight.shape, **case.facts, dtype=case.dtype, op=op)
        assert plan.op == op
        assert plan.workspace >= 0
        assert plan.flops == 2 * case.grad().size * case.weight()[0].size
        assert str(plan).startswith(f"conv{case.rank}d {op}, {case.dtype}, {case.layout}: ")


def test_pointwise_convolutions_are_not_lowered() -> None:
    def lowered(*kernel: int, **facts: int) -> tuple[int, str]:
        shape = fastconv.explain((8, 64, 14, 14), (64, 64, *kernel), **facts).shape
        im2col = fastconv.ALGORITHMS["im2col"]
        workspace = im2col.workspace(shape, np.dtype(np.float32), "forward")
        return workspace, str(im2col.details(shape, np.dtype(np.float32), "forward"))

    workspace, details = lowered(1, 1)
    assert workspace == 0
    assert "none" in details
    for workspace, details in (lowered(1, 1, stride=2), lowered(1, 1, padding=1), lowered(1, 2)):
        assert workspace > 0
        assert "block" in details
