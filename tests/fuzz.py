"""Calls every public function with arguments of every kind, and checks what comes of it.

    python tests/fuzz.py --calls 100000

A call with good arguments must give the right result, in whatever form they come: that of the naive loops, or
of the loops in `oracles.py`. Any other call must give a right result too, or a ValueError or TypeError that
begins with the name of the function. No other exception, no warning, no crash, no call that does not end, no
input changed. A worker process makes the calls, and notes each before it starts: what kills it is known by
its number, and `--case NUMBER` makes that call alone. With `--fences` every array that the library sees or
makes, its scratch memory included, ends at a page that may not be touched.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import mmap
import os
import struct
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

sys.path += [str(Path(__file__).parents[up]) for up in (0, 1)]  # run as a script, it is of this tree

import oracles
from fuzz_arguments import (
    INTEGERS,
    NORMS,
    ROLES,
    Holder,
    World,
    break_,
    dress,
    family,
    make_world,
    overlapping,
)
from strategies import from_layout, to_layout

import fastconv
from fastconv import arguments, reference, threads
from fastconv.functional.narrow import is_narrow

#: What a call may ask for: more is refused before it is allocated, as more than all memory is elsewhere.
MOST_BYTES = 1 << 26
#: Cells of a result beyond which the loops would take too long; only odd arguments lead there.
MOST_COMPARED = 1 << 17
#: What the process may have beyond what it has at the start.
SPARE_BYTES = 3 << 29
#: A call that takes longer does not end.
SECONDS = 60

#: They change or print what is set: called rarely.
SETTINGS = ("set_num_threads", "num_threads", "set_float32_precision", "warmup")
PLAIN = ("get_num_threads", "get_float32_precision", "show_config")


def public_functions() -> list[str]:
    """All that can be called, classes aside."""
    return [name for name in fastconv.__all__ if inspect.isroutine(getattr(fastconv, name))]


def parameters(function: str) -> list[inspect.Parameter]:
    return list(inspect.signature(getattr(fastconv, function)).parameters.values())


class Call(NamedTuple):
    number: int
    world: World
    plain: dict[str, Any]  # good arguments in their simplest form
    given: dict[str, Any]  # what is passed
    broken: bool

    @property
    def function(self) -> str:
        return self.world.function

    def __str__(self) -> str:
        def show(value: Any) -> str:
            if isinstance(value, np.ndarray) and type(value) is not np.ma.MaskedArray:
                return f"{type(value).__name__}({value.shape}, {value.dtype}, strides {value.strides})"
            return arguments.shown(value)

        given = ", ".join(f"{name}={show(value)}" for name, value in self.given.items())
        return f"case {self.number}: {self.function}({given})"


def make_call(number: int, only: str = "") -> Call:
    rng = Random(number)
    names = [name for name in public_functions() if name not in PLAIN and only in name]
    weights = [0.01 if name in SETTINGS else 1.0 for name in names]
    world = make_world(rng.choices(names, weights)[0], rng)
    plain = {}
    for parameter in parameters(world.function):
        value = ROLES[parameter.name](world)
        if parameter.default is inspect.Parameter.empty or rng.random() < 0.9 or _needed(parameter.name):
            plain[parameter.name] = value
    given = dict(plain)
    for name, value in plain.items():
        if rng.random() < 0.25:
            given[name] = dress(name, value, rng)
    broken = rng.random() < 0.6
    if broken:
        for name in rng.sample(sorted(given), min(len(given), rng.choice([1, 1, 1, 2, 3]))):
            given[name] = break_(plain[name], rng)
    elif isinstance(plain.get("out"), np.ndarray) and rng.random() < 0.3:
        given["x"], given["out"] = overlapping(plain["x"], plain["out"], rng)
    elif world.base in ("conv_integer", "qlinear_conv") and rng.random() < 0.2:
        facts = {name: plain[name] for name in ("weight_zero_point", "groups") if name in plain}
        given["weight"] = fastconv.prepack_integer(plain["weight"], **facts)
        given["weight_zero_point"] = 0
    elif world.base == "conv" and "bias" in plain and rng.random() < 0.2:
        names = ["stride", "padding", "dilation", "groups", "layout"]
        facts = {name: plain[name] for name in names if name in plain}
        given["weight"] = fastconv.prepack(plain["weight"], x_shape=plain["x"].shape, **facts)
    return Call(number, world, plain, given, broken)


def _needed(name: str) -> bool:
    """Whether leaving an argument out changes the world that the others are made for."""
    return name not in (
        "bias",
        "mask",
        "out",
        "activation",
        "algorithm",
        "needs",
        "count_include_pad",
        "return_indices",
    )


# --- what is right ------------------------------------------------------------------------------


def results(value: Any) -> list[np.ndarray]:
    """The arrays of a result, whatever it is."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, tuple):
        return [part for part in value if part is not None]
    return []


def by_naive_loops(function: str, args: dict[str, Any], bound: bool) -> list[np.ndarray]:
    """What the reference says; with `bound`, of absolute values: what rounding errors are proportional to."""

    def plain(value: Any) -> Any:
        array = np.array(value) if hasattr(value, "__array__") else np.array(None)
        if not (array.dtype.kind == "f" or is_narrow(array.dtype)) or array.ndim == 0:
            return value
        return abs(array.astype(np.float64)) if bound else array.astype(np.float64)

    args = {name: plain(value) for name, value in args.items() if name != "out"}
    return results(getattr(fastconv, function)(**{**args, "algorithm": "naive"}))


def _window_facts(w: World) -> tuple[Any, ...]:
    return w.kernel, w.stride, w.pads, w.dilation


def _batched(w: World, array: np.ndarray) -> np.ndarray:
    return from_layout(array[None] if w.batch is None else array, w.layout).astype(np.float64)


def _as_given(w: World, array: np.ndarray) -> np.ndarray:
    array = to_layout(array, w.layout)
    return array[0] if w.batch is None else array


def _lowered(w: World, x: np.ndarray) -> np.ndarray:
    n, c = x.shape[:2]
    windows = oracles.windows_of(x, *_window_facts(w))
    rank = w.rank
    order = (0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    return windows.transpose(order).reshape(n, c * int(np.prod(w.kernel)), -1)


def _im2col(w: World, args: dict[str, Any]) -> list[np.ndarray]:
    columns = _lowered(w, _batched(w, args["x"]))
    return [columns[0] if w.batch is None else columns]


def _col2im(w: World, args: dict[str, Any]) -> list[np.ndarray]:
    cols = args["cols"][None] if w.batch is None else args["cols"]
    n, c, cells = cols.shape[0], w.channels, int(np.prod(w.size))
    places = _lowered(w, np.arange(1.0, cells + 1).reshape(1, 1, *w.size)).astype(int)
    x = np.zeros((n, c, cells + 1))  # the first cell is the padding
    for image, channel in np.ndindex(n, c):
        part = cols.reshape(n, c, *places.shape[1:])[image, channel]
        np.add.at(x[image, channel], places[0], part)
    x = x[:, :, 1:].reshape(n, c, *w.size)
    return [x[0] if w.batch is None else x]


def _max_pool_backward(w: World, args: dict[str, Any]) -> list[np.ndarray]:
    grad, indices = _batched(w, args["grad_output"]), _batched(w, args["indices"])
    return [_as_given(w, oracles.scatter_add(grad, indices, (*grad.shape[:2], *w.size)))]


def _adaptive_avg_pool(w: World, args: dict[str, Any]) -> list[np.ndarray]:
    return [_as_given(w, oracles.adaptive_avg_pool(_batched(w, args["x"]), w.out))]


def _adaptive_max_pool(w: World, args: dict[str, Any]) -> list[np.ndarray]:
    both = [_as_given(w, part) for part in oracles.adaptive_max_pool(_batched(w, args["x"]), w.out)]
    return both if args.get("return_indices") else both[:1]


def _adaptive_avg_pool_backward(w: World, args: dict[str, Any]) -> list[np.ndarray]:
    grad = _batched(w, args["grad_output"])
    x = np.zeros((*grad.shape[:2], *w.size))
    windows = oracles.adaptive_windows(w.size, w.out)
    for window, cell in zip(windows, np.ndindex(*w.out), strict=True):
        part = x[(..., *window)]
        part += grad[(..., *cell)].reshape(*grad.shape[:2], *(1,) * w.rank) / max(1, part[0, 0].size)
    return [_as_given(w, x)]


def _max_unpool(w: World, args: dict[str, Any]) -> list[np.ndarray]:
    x, indices = _batched(w, args["x"]), _batched(w, args["indices"]).astype(int)
    return [_as_given(w, oracles.put(x, indices, (*x.shape[:2], *w.size)))]


def _max_unpool_backward(w: World, args: dict[str, Any]) -> list[np.ndarray]:
    return [_as_given(w, oracles.pick(_batched(w, args["grad_output"]), _batched(w, args["indices"])))]


def _integer_sums(w: World, args: dict[str, Any]) -> np.ndarray:
    weight = np.asarray(args["weight"], float)
    zeros = np.reshape(args.get("weight_zero_point", 0), (-1, *(1,) * (w.rank + 1)))
    x = _batched(w, args["x"]) - args.get("x_zero_point", 0)
    return oracles.conv(x, weight - zeros, w.stride, w.pads, w.dilation, w.groups)


def _conv_integer(w: World, args: dict[str, Any]) -> list[np.ndarray]:
    return [_as_given(w, _integer_sums(w, args))]


def _qlinear_conv(w: World, args: dict[str, Any]) -> list[np.ndarray]:
    sums = _integer_sums(w, args)
    if args.get("bias") is not None:
        sums += args["bias"].reshape(-1, *(1,) * w.rank)
    x_scale, y_scale, scales = (
        np.asarray(args[f"{name}_scale"], np.float32).reshape(-1) for name in ("x", "y", "weight")
    )
    factors = (x_scale * scales / y_scale).astype(float).reshape(-1, *(1,) * w.rank)
    zero = args["y_zero_point"]
    ends = np.iinfo(zero.dtype)
    return [_as_given(w, np.clip(np.rint(sums * factors) + int(zero.item()), ends.min, ends.max))]


def _deform_conv(w: World, args: dict[str, Any]) -> list[np.ndarray]:
    x, offset = (_batched(w, args[name]) for name in ("input", "offset"))
    cells = (*w.kernel, *w.out)
    offset = offset.reshape(len(x), -1, *w.kernel, 2, *w.out)
    mask = np.ones((len(x), offset.shape[1], *cells))
    if args.get("mask") is not None:
        mask = args["mask"].astype(float).reshape(mask.shape)
    before = tuple(pair[0] for pair in w.pads)
    weight = args["weight"].astype(float)
    y = reference.deform_conv(x, offset, weight, mask, w.stride, before, w.dilation, w.groups, w.out)
    if args.get("bias") is not None:
        y += args["bias"].astype(float).reshape(-1, 1, 1)
    return [_as_given(w, y)]


#: For the functions without an `algorithm`, by family and what follows the rank.
LOOPS: dict[tuple[str, str], Callable[[World, dict[str, Any]], list[np.ndarray]]] = {
    ("im2col", ""): _im2col,
    ("col2im", ""): _col2im,
    ("max_pool", "backward"): _max_pool_backward,
    ("adaptive_avg_pool", ""): _adaptive_avg_pool,
    ("adaptive_avg_pool", "backward"): _adaptive_avg_pool_backward,
    ("adaptive_max_pool", ""): _adaptive_max_pool,
    ("max_unpool", ""): _max_unpool,
    ("max_unpool", "backward"): _max_unpool_backward,
    ("conv_integer", ""): _conv_integer,
    ("qlinear_conv", ""): _qlinear_conv,
    ("deform_conv", ""): _deform_conv,
}


def _has_norm(call: Call) -> bool:
    """Whether no power that `call` takes is NaN, or beyond what float32 has."""
    x, norm = call.given["x"], call.given.get("norm_type")
    if not isinstance(norm, (int, float)) or norm not in NORMS or not isinstance(x, np.ndarray):
        return False
    sizes = np.abs(x.astype(float))
    inside = (sizes > 1e-3) & (sizes < 1e3) | (sizes == 0) & (norm in (2, 4))
    grad = call.given.get("grad_output", x)
    if not isinstance(grad, np.ndarray) or not (np.abs(grad.astype(float)) < 1e3).all():
        return False
    return bool(inside.all() and (norm in (2, 4) or (x >= 0).all()))


def has_naive_loops(function: str) -> bool:
    return function != "prepack" and any(p.name == "algorithm" for p in parameters(function))


def check_result(call: Call, value: Any) -> None:
    """Compare with the reference; what was broken and yet accepted, only where the reference takes it too."""
    got = results(value)
    base, _, suffix = family(call.function)
    if call.broken and sum(array.size for array in got) > MOST_COMPARED:
        return
    if base == "lp_pool" and not _has_norm(call):
        return
    if has_naive_loops(call.function):
        args = call.given if call.broken else call.plain
        expected = by_naive_loops(call.function, args, False)
        # where nothing is finite, nothing is rounded
        magnitude = by_naive_loops(call.function, args, True)
    elif (base, suffix) in LOOPS and not call.broken and call.world.batch != 0 and call.world.channels:
        finite = {
            name: abs(np.nan_to_num(a.astype(float)))
            if isinstance(a, np.ndarray) and name != "offset" and call.world.dtype not in INTEGERS
            else a
            for name, a in call.plain.items()
        }
        expected = LOOPS[base, suffix](call.world, call.plain)
        magnitude = LOOPS[base, suffix](call.world, finite)
    else:
        return
    zero_times_infinity = "conv" in base and any(
        name in ("weight", "grad_output", "x" if base == "conv_transpose" else "")
        and call.world.dtype not in INTEGERS
        and not np.isfinite(np.asarray(value, np.float64)).all()
        for name, value in call.given.items()
    )
    assert len(got) == len(expected), f"{len(got)} results, not {len(expected)}"
    for actual, exact, size in zip(got, expected, magnitude, strict=True):
        assert actual.shape == exact.shape, f"shape {actual.shape}, not {exact.shape}"
        if actual.dtype.kind in "iu":
            assert (actual == exact).all(), "integers are off"
            continue
        if not actual.size:
            continue
        rounding, largest = 0.0, float(np.finfo(np.float32).max)
        if is_narrow(actual.dtype):  # computed in float32, and rounded
            half = actual.dtype == np.float16
            rounding, largest = (2.0**-11, 65504.0) if half else (2.0**-8, largest)
            actual = actual.astype(np.float32)
        eps = float(np.finfo(actual.dtype).eps)
        if actual.dtype == np.float64:
            largest = float(np.finfo(np.float64).max)
        most = float(np.where(np.isfinite(size), size, 0).max(initial=0))
        # Winograd's errors are those of whole tiles; a sum of products has a rounding for each
        close = abs(actual - exact) <= 500 * eps * most + rounding * abs(exact) + (rounding > 0) * 2.0**-25
        same = (actual == exact) | (np.isnan(actual) & np.isnan(exact))
        # the reference adds in double, and does not overflow on the way
        overflow = ~(size <= largest / 1e4) & ~np.isfinite(actual)
        # kernels that pad with zeros multiply them by weights and gradients that are not finite
        overflow |= np.isnan(actual) & zero_times_infinity
        wrong = ~(close | same | overflow)
        assert not wrong.any(), (
            f"{wrong.sum()} of {wrong.size} cells are off: {actual[wrong][0]}, {exact[wrong][0]}"
        )


def snapshots(call: Call) -> list[tuple[str, np.ndarray, bytes]]:
    taken = []
    for name, value in call.given.items():
        array = value.array if isinstance(value, Holder) else value
        if name == "out" or not isinstance(array, np.ndarray) or array.size > 1 << 20 or array.ndim == 0:
            continue
        out = call.given.get("out")
        if isinstance(out, np.ndarray) and np.may_share_memory(array, out):
            continue
        if not array.dtype.hasobject:
            taken.append((name, array, array.tobytes()))
    return taken


def run(call: Call) -> str:
    """Make the call; what came of it: "result", "refused" or "algorithm". An AssertionError is a finding."""
    before = snapshots(call)
    outcome = "result"
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("error")
            value = getattr(fastconv, call.function)(**call.given)
            if call.function == "num_threads":
                with value:
                    pass
    except (ValueError, TypeError) as error:
        message = str(error)
        if not message.startswith((call.function + ":", call.function + "(")):
            raise AssertionError(f"a message without the name: {error!r}") from error
        outcome = "algorithm" if "cannot compute this" in message else "refused"
        if not call.broken and (outcome == "refused" or call.given.get("algorithm", "auto") == "auto"):
            raise AssertionError(f"refused: {error!r}") from error
    for name, array, content in before:
        assert array.tobytes() == content, f"{name} was changed"
    if outcome == "result":
        str(value)
        if call.given.get("out") is not None:
            array = value[0] if isinstance(value, tuple) else value
            assert np.may_share_memory(array, call.given["out"]) or not array.size, "out is not the result"
            if 0 in call.given["out"].strides:
                return outcome  # cells share memory: the last one written wins
        with np.errstate(all="ignore"):
            check_result(call, value)
    return outcome


@contextlib.contextmanager
def settings(call: Call) -> Iterator[None]:
    """What calls may set is put back; Winograd gets nothing that is not finite: it spreads in its tiles."""
    threads, precision = fastconv.get_num_threads(), fastconv.get_float32_precision()
    odd = call.world.kind == "special" or call.broken
    fastconv.set_float32_precision("highest" if odd else "high")
    try:
        yield
    finally:
        fastconv.set_num_threads(threads)
        fastconv.set_float32_precision(precision)


# --- a worker, and who watches it ---------------------------------------------------------------


def behind_fences(call: Call) -> Call:
    """The same call with arrays that end at the end of memory, or begin at its beginning."""
    from fences import fenced

    given = dict(call.given)
    for name, value in given.items():
        if type(value) is np.ndarray and value.flags.c_contiguous and not value.dtype.hasobject:
            if value.base is None and value.size:
                given[name] = fenced(value, call.number % 3 > 0)
    return call._replace(given=given)


def limit_memory() -> None:
    import resource

    arguments.LARGEST_BYTES = MOST_BYTES
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * mmap.PAGESIZE + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def work(first: int, calls: int, journal: str, only: str, fences: bool) -> int:
    """Make the calls in this process, noting each one's number first; prints what is wrong."""
    outcomes: Counter[str] = Counter()
    slowest = (0.0, "")
    with open(journal, "r+b") as file:
        note = mmap.mmap(file.fileno(), 16)
    fastconv.conv2d(
        np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    )  # threads, and their stacks, before the limit
    if fences:
        from fences import fence_everything

        fence_everything()
    limit_memory()
    for number in range(first, first + calls):
        note[:16] = struct.pack("qd", number, time.time())
        with np.errstate(all="ignore"):
            call = make_call(number, only)
        if fences:
            call = behind_fences(call)
            threads.SERIAL_WORK = (0, 1 << 15)[number % 2]  # several tasks, however little work
        start = time.perf_counter()
        try:
            with settings(call):
                outcomes[run(call)] += 1
        except BaseException as error:
            outcomes["wrong"] += 1
            kind = "" if isinstance(error, AssertionError) else traceback.format_exc(limit=-4)
            print(
                f"WRONG {str(call)[:1000]}\n    {type(error).__name__}: {str(error)[:500]}\n{kind}",
                flush=True,
            )
        taken = time.perf_counter() - start
        if taken > slowest[0]:
            slowest = (taken, str(call)[:400])
    counts = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    print(f"DONE {calls} calls: {counts}; the slowest took {slowest[0]:.2f} s: {slowest[1]}", flush=True)
    return int(outcomes["wrong"] > 0)


def watch(first: int, calls: int, only: str, fences: bool) -> int:
    """Have workers make the calls; one that dies or does not end is replaced."""
    bad = 0
    journal = (
        f"/dev/shm/fastconv-fuzz-{os.getpid()}" if os.path.isdir("/dev/shm") else f"fuzz-{os.getpid()}.tmp"
    )
    Path(journal).write_bytes(bytes(16))
    try:
        number, end = first, first + calls
        while number < end:
            command = [sys.executable, "-X", "faulthandler", __file__, "--worker", journal]
            command += ["--first", str(number), "--calls", str(end - number), "--only", only]
            process = subprocess.Popen(command + ["--fences"] * fences)
            while process.poll() is None:
                time.sleep(0.05)
                at, since = struct.unpack("qd", Path(journal).read_bytes())
                if since and time.time() - since > SECONDS:
                    process.kill()
            if process.returncode in (0, 1):
                return bad or process.returncode
            at, _ = struct.unpack("qd", Path(journal).read_bytes())
            reason = (
                f"did not end in {SECONDS} s"
                if process.returncode == -9
                else f"ended with {process.returncode}"
            )
            print(f"DEAD worker {reason} in {str(make_call(at, only))[:1000]}", flush=True)
            bad, number = 1, at + 1
    finally:
        os.unlink(journal)
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="this case alone, in this process")
    parser.add_argument("--only", default="", help="functions whose name has this in it")
    parser.add_argument("--fences", action="store_true", help="closed pages beside every array")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case is not None:
        call = make_call(chosen.case, chosen.only)
        print(call)
        arguments.LARGEST_BYTES = MOST_BYTES
        with settings(call):
            print(run(call))
        return 0
    facts = (chosen.first, chosen.calls)
    if chosen.worker:
        return work(*facts, chosen.worker, chosen.only, chosen.fences)
    return watch(*facts, chosen.only, chosen.fences)


if __name__ == "__main__":
    sys.exit(main())
