"""The fuzzer, with a small budget; what it has found, each kept by name; and that it leaves nothing out."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import pytest
from fuzz_arguments import ROLES, Holder
from processes import environment

import fastconv
from fastconv import arguments, jit, nn

X, WEIGHT = np.ones((1, 2, 6, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)


def test_no_public_function_is_left_out() -> None:
    """A new one joins by being in `__all__`; a parameter of a new name needs a role."""
    functions = fuzz.public_functions()
    assert {"conv2d", "max_pool3d_backward", "prepack", "set_num_threads"} <= set(functions)
    classes = {"ConvGrads", "PackedIntegers", "PackedWeight", "Plan"}
    values = {"ALGORITHMS", "POOL_ALGORITHMS", "__version__"}
    assert set(fastconv.__all__) == set(functions) | classes | values
    for function in functions:
        for parameter in fuzz.parameters(function):
            assert parameter.name in ROLES, f"{function}: what is {parameter.name}? See ROLES"


def test_every_result_is_compared() -> None:
    """With the naive loops or with an oracle; or it is no array."""
    no_arrays = {*fuzz.SETTINGS, *fuzz.PLAIN, "explain", "prepack", "prepack_integer"}
    for function in set(fuzz.public_functions()) - no_arrays:
        base, _, suffix = fuzz.family(function)
        assert fuzz.has_naive_loops(function) or (base, suffix) in fuzz.LOOPS, function


@pytest.mark.parametrize("options", [["--calls", "1500"], ["--calls", "500", "--first", "10000", "--fences"]])
@pytest.mark.skipif(
    jit.DISABLED, reason="NUMBA_DISABLE_JIT: it takes minutes, and kernels are what it is for"
)
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its limits")
def test_fuzz(options: list[str]) -> None:
    command = [sys.executable, str(Path(fuzz.__file__)), *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(count) for count, name in (part.split() for part in _counts(done.stdout))}
    assert counts["result"] > sum(counts.values()) / 4
    assert counts["refused"] > sum(counts.values()) / 4


def _counts(out: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.startswith("DONE ")]
    return line.split(": ", 1)[1].split(";")[0].split(", ")


def test_it_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong result, another exception, a changed input: else it would prove nothing."""
    right = fastconv.conv2d
    call = next(c for c in map(fuzz.make_call, range(2000)) if c.function == "conv2d" and not c.broken)
    given = {"x": X, "weight": WEIGHT}
    call = call._replace(plain=given, given=given)

    def off(x: Any, weight: Any, algorithm: str = "auto") -> Any:
        y = right(x, weight, algorithm=algorithm)
        if algorithm == "auto":
            y[0, 0, 1, 1] += 1
        return y

    def changes(x: Any, weight: Any, algorithm: str = "auto") -> Any:
        y = right(x, weight, algorithm=algorithm)
        x[0, 0, 0, 0] += 1
        return y

    def fails(x: Any, weight: Any) -> Any:
        raise ValueError("something is wrong")

    assert fuzz.run(call) == "result"
    for wrong, message in (
        (off, "1 of 48 cells are off"),
        (changes, "x was changed"),
        (fails, "without the"),
    ):
        monkeypatch.setattr(fastconv, "conv2d", wrong)
        with pytest.raises(AssertionError, match=message):
            fuzz.run(call)


# --- what it has found --------------------------------------------------------------------------

ROUND: list[Any] = []
ROUND.append(ROUND)
DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]


BYTES = np.ones((3, 3, 4, 4), np.uint8)
PACKED = fastconv.prepack_integer(BYTES)
QUANTISED = {"x": BYTES, "x_scale": 1.0, "x_zero_point": 0, "weight": BYTES, "weight_scale": 1.0,
             "weight_zero_point": 0, "y_scale": 1.0, "y_zero_point": np.uint8(0)}  # fmt: skip

UNSHOWN = [ROUND, DEEP, [[[[1]]]], range(10**7), 10**5000, "\ud800", np.array(None)]


@pytest.mark.parametrize("value", UNSHOWN, ids=range(len(UNSHOWN)))
@pytest.mark.parametrize("name", ["stride", "padding", "groups", "layout", "algorithm", "padding_mode"])
def test_a_value_that_cannot_be_shown(name: str, value: Any) -> None:
    """The message was made from the whole value: a RecursionError, or megabytes of it."""
    with pytest.raises((ValueError, TypeError), match=r"^conv2d: ") as caught:
        fastconv.conv2d(X, WEIGHT, **{name: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("function", "args"),
    [
        ("explain", {"x_shape": (1, 2, 6, 6), "weight_shape": (3, 2, 3, 3), "dtype": ROUND}),
        ("explain", {"x_shape": (1, 2, 6, 6), "weight_shape": (3, 2, 3, 3), "dtype": "\ud800"}),
        ("explain", {"x_shape": (1, 2, 6, 6), "weight_shape": (3, 2, 3, 3), "op": np.array(["forward"] * 2)}),
        ("warmup", {"ops": [["conv"]]}),
        ("warmup", {"dtypes": 32}),
        ("warmup", {"ops": np.array("conv")}),
        ("conv2d", {"x": Holder([1.0, 2.0]), "weight": WEIGHT}),
        ("avg_pool2d", {"x": X, "kernel_size": 2, "count_include_pad": np.array([True, False])}),
        ("max_pool2d", {"x": X, "kernel_size": 2, "return_indices": np.array([True, False])}),
        ("adaptive_max_pool2d", {"x": X, "output_size": 2, "return_indices": "no"}),
        # the arrays after those of two dtypes were looked at for the message
        ("conv2d", {"x": X.astype("f2"), "weight": WEIGHT, "bias": Holder(None)}),
        ("max_unpool2d", {"x": X, "indices": Holder(np.full(X.shape, 999)), "kernel_size": 2}),
        (
            "max_pool2d_backward",
            {"grad_output": X, "indices": Holder(X.astype(int) + 99), "input_shape": X.shape},
        ),
        ("lp_pool2d", {"x": X, "norm_type": 10**400, "kernel_size": 2}),
        ("lp_pool2d", {"x": X, "norm_type": np.array([2]), "kernel_size": 2}),
        ("lp_pool2d", {"x": X.astype("f2"), "norm_type": 2, "kernel_size": Holder(None)}),
        ("conv_integer", {"x": BYTES, "weight": BYTES, "weight_zero_point": [[1], [2, 3]]}),
        ("conv_integer", {"x": BYTES, "weight": BYTES, "x_zero_point": ROUND}),
        ("conv_integer", {"x": BYTES, "weight": PACKED, "weight_zero_point": DEEP}),
        ("qlinear_conv", {**QUANTISED, "x_scale": "1"}),
        ("qlinear_conv", {**QUANTISED, "y_scale": np.uint8}),
        ("qlinear_conv", {**QUANTISED, "weight_scale": np.array([1j])}),
        ("qlinear_conv", {**QUANTISED, "x_scale": 1e300}),
        ("qlinear_conv", {**QUANTISED, "weight_scale": np.ma.masked_array([1.0])}),
    ],
)
def test_messages_name_the_function(function: str, args: dict[str, Any]) -> None:
    """These had NumPy's or Python's own messages, or other types of exceptions."""
    with pytest.raises((ValueError, TypeError), match=f"^{function}: "):
        getattr(fastconv, function)(**args)


@pytest.mark.parametrize("op", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("sizes", [(0, 2, 1), (2, 0, 1), (2, 2, 0)])
def test_explain_of_nothing(op: str, sizes: tuple[int, int, int]) -> None:
    """A ZeroDivisionError: blocks of nothing were counted."""
    n, c, k = sizes
    for layout, x, weight in (
        ("NCHW", (n, c, 15), (k, c, 1)),
        ("NHWC", (n, 15, c), (1, c, k)),
        ("NCHW", (n, c, 30, 30), (k, c, 3, 3)),
    ):
        plan = fastconv.explain(x, weight, op=op, layout=layout)
        assert plan.flops == plan.workspace == 0
        assert "flops" in str(plan)


def test_ints_by_another_name_set_the_threads() -> None:
    """`__index__` counted everywhere but here."""
    before = fastconv.get_num_threads()
    fastconv.set_num_threads(np.array(1))
    assert fastconv.get_num_threads() == 1
    fastconv.set_num_threads(before)


def test_indices_of_nothing_that_come_in_a_holder() -> None:
    """An AttributeError: the limits were asked of what has the array."""
    nothing = np.zeros((1, 0, 2, 2), np.float32)
    grad_x = fastconv.max_pool2d_backward(nothing, Holder(nothing.astype(int)), (1, 0, 4, 4))  # type: ignore[arg-type]
    assert grad_x.shape == (1, 0, 4, 4)


@pytest.mark.parametrize("norm", [np.array(2), np.array(2.0), np.int8(2), np.float32(2)])
def test_norms_by_another_name(norm: Any) -> None:
    """Arrays of one number were refused."""
    np.testing.assert_array_equal(fastconv.lp_pool2d(X, norm, 2), fastconv.lp_pool2d(X, 2, 2))


def test_places_count_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of an infinite norm are twice as large as the result."""
    monkeypatch.setattr(arguments, "LARGEST_BYTES", X.nbytes)
    fastconv.lp_pool2d(X, 2, 1)
    with pytest.raises(ValueError, match="lp_pool2d: the places would have shape"):
        fastconv.lp_pool2d(X, float("inf"), 1)


HUGE = np.broadcast_to(np.float32(0), (1, 2, 2**20, 2**20))
HUGE_HALF = np.broadcast_to(np.float16(0), HUGE.shape)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fastconv.conv2d(X, WEIGHT, padding=2**20),
        lambda: fastconv.conv2d(X, WEIGHT, padding=2**20, stride=2, algorithm="gemm"),
        lambda: fastconv.conv2d(HUGE, WEIGHT),
        lambda: fastconv.conv2d(HUGE, WEIGHT, padding=1, padding_mode="circular"),
        lambda: fastconv.conv_transpose2d(X, WEIGHT.swapaxes(0, 1).copy(), stride=2**20),
        lambda: fastconv.conv2d_input_grad(HUGE, WEIGHT, (1, 2, 2**20 + 2, 2**20 + 2)),
        lambda: fastconv.max_pool2d(HUGE, 2),
        lambda: fastconv.max_pool2d_backward(X, X.astype(int), (1, 2, 2**20, 2**20)),
        lambda: fastconv.avg_pool2d_backward(X, (1, 2, 6 * 2**20, 6 * 2**20), 2**20),
        lambda: fastconv.adaptive_avg_pool2d(X, 2**20),
        lambda: fastconv.adaptive_max_pool2d(X, 2**20, return_indices=True),
        lambda: fastconv.adaptive_avg_pool2d_backward(X, (1, 2, 2**20, 2**20)),
        lambda: fastconv.im2col(X, 2, padding=2**20),
        lambda: fastconv.col2im(np.ones((1, 2, 1), np.float32), (2**20, 2**20), 1, stride=2**20),
        lambda: fastconv.conv_integer(BYTES, BYTES, padding=2**21),
        lambda: fastconv.conv_integer(BYTES, BYTES, padding=2**21, stride=2**21),
        lambda: fastconv.qlinear_conv(**QUANTISED, padding=2**21, stride=2**21),
        lambda: fastconv.prepack_integer(np.broadcast_to(np.int8(0), (2**20, 2**20, 4, 4))),
        lambda: fastconv.deform_conv2d(HUGE, X, WEIGHT),
        lambda: fastconv.max_unpool2d(X, X.astype(int), 2**20),
        lambda: fastconv.lp_pool2d(HUGE, 2, 2),
        lambda: fastconv.avg_pool2d(HUGE_HALF, 2),
        lambda: fastconv.deform_conv2d(HUGE_HALF, HUGE_HALF, HUGE_HALF),
        lambda: fastconv.prepack(HUGE.reshape(2**20, 2**20, 1, 2), x_shape=(1, 2**20, 9, 9)),
    ],
)
def test_no_memory_holds_it(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before it is allocated: a system promises more memory than it has, and kills who uses it."""
    if arguments.LARGEST_BYTES > 2**42:
        monkeypatch.setattr(arguments, "LARGEST_BYTES", 2**42)
    with pytest.raises(ValueError, match=r"^\w+: .* bytes, more than the [0-9,]+ bytes of memory that there"):
        call()


@pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: kernels have scratch memory")
@pytest.mark.parametrize(
    ("size", "facts"),
    [
        (4, {"kernel_size": 2, "stride": 2**31 - 1}),
        (7, {"kernel_size": 3, "stride": 2**31 - 1, "padding": ((1, 0),)}),
        (4, {"kernel_size": 2, "stride": 2**20, "padding": ((0, 2**30),), "dilation": 2**30}),
    ],
)
def test_scratch_memory_does_not_grow_with_strides_and_padding(size: int, facts: dict[str, Any]) -> None:
    """Rows of pooling were as long as stride and padding said: 256 GiB, of which four cells were x."""
    x = np.arange(float(size)).reshape(1, 1, size)
    for pool in (fastconv.max_pool1d, fastconv.avg_pool1d):
        tracemalloc.start()
        y = pool(x, **facts)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
        tracemalloc.stop()
        np.testing.assert_array_equal(y, pool(x, **facts, algorithm="naive"))
    back = [fastconv.avg_pool1d_backward(y, x.shape, **facts, algorithm=name) for name in ("auto", "naive")]
    np.testing.assert_array_equal(*back)


def test_planning_does_not_take_longer_with_strides() -> None:
    """The phases of an input gradient were counted for strides of which a single window is left: it hung."""
    weight = np.ones((2, 2, 3), np.float32)
    grad = np.ones((1, 2, 1), np.float32)
    for algorithm in ("auto", "naive"):
        grad_x = fastconv.conv1d_input_grad(grad, weight, (1, 2, 9), stride=2**31 - 1, algorithm=algorithm)
        np.testing.assert_array_equal(grad_x, np.pad(np.full((1, 2, 3), 2), ((0, 0), (0, 0), (0, 6))))
    with pytest.raises(ValueError, match="more than"):
        fastconv.conv_transpose2d(X, np.ones((2, 2, 1, 1), np.float32), stride=2**26)


def test_what_is_not_finite_is_no_warning() -> None:
    """NumPy's sums warned of infinity less infinity, where the kernels' do not: here warnings are errors."""
    x = X.copy()
    x[0, 0, :2, 0] = np.inf, -np.inf
    for layout in ("NCHW", "NHWC"):
        grads = fastconv.conv2d_backward(x, x, WEIGHT[:2, :, :1, :1] if layout == "NCHW" else np.ones(
            (1, 1, 6, 6), np.float32
        ), layout=layout)  # fmt: skip
        assert np.isnan(grads.bias).any()
    huge = np.full((1, 2, 6, 6), np.finfo(np.float32).max, np.float32)
    for algorithm in ("im2col", "naive", "auto"):
        assert np.isinf(fastconv.conv2d(huge, WEIGHT, algorithm=algorithm)).all()
        assert np.isinf(
            fastconv.conv_transpose2d(huge, WEIGHT[:2], WEIGHT[0, 0, 0, :2], algorithm=algorithm)
        ).any()
    assert nn.ReLU().forward(x).shape == x.shape
