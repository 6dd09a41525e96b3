"""dask arrays and training on a cluster of two processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from oracles import assert_same, assert_same_bits
from processes import environment
from test_mnist import idx_folder  # noqa: F401  (a fixture)

import fastconv
from fastconv import mnist, nn

dask = pytest.importorskip("dask", reason="dask is not installed")
da = pytest.importorskip("dask.array", reason="dask is not installed")
distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
lazy = pytest.importorskip("fastconv.dask", reason="dask is not installed")
shares = pytest.importorskip("fastconv.dask.shares", reason="dask is not installed")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two workers, processes of one thread each."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def both_are_there(request: Any) -> None:
    """A worker that was killed is replaced by a new one."""
    if "client" in request.fixturenames:
        request.getfixturevalue("client").wait_for_workers(2, timeout=60)


def digits(*shape: int, seed: int = 0) -> np.ndarray:
    """Small integers: sums of them are exact in any order."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


def test_arrays_are_computed_by_both_workers(client: Any) -> None:
    x, weight, grad = digits(4, 2, 40, 30), digits(3, 2, 3, 3, seed=1), digits(4, 3, 20, 15, seed=2)
    facts = {"stride": 2, "padding": "same", "algorithm": "im2col"}
    lazy_x = da.from_array(x, chunks=(1, 2, 16, 15))
    y = lazy.conv2d(lazy_x, weight, **facts).persist()
    distributed.wait(y)
    owners = {worker for workers in client.who_has(y).values() for worker in workers}
    assert owners == set(client.nthreads())
    assert_same(y.compute(), fastconv.conv2d(x, weight, **facts))

    grads = lazy.conv2d_backward(da.from_array(grad, chunks=(2, 3, 9, 15)), lazy_x, weight, **facts)
    expected = fastconv.conv2d_backward(grad, x, weight, **facts)
    for mine, plain in zip(dask.compute(*grads), expected, strict=True):
        assert_same(mine, plain)

    pooled = dask.compute(*lazy.max_pool2d(lazy_x, 3, 2, 1, return_indices=True))
    for mine, plain in zip(pooled, fastconv.max_pool2d(x, 3, 2, 1, return_indices=True), strict=True):
        assert_same(mine, plain)


def test_sums_have_the_same_bits_on_a_cluster_and_here(client: Any) -> None:
    rng = np.random.default_rng(0)
    x, grad = (da.from_array(rng.standard_normal((6, 3, 32, 32)), chunks=(1, 3, 9, 9)) for _ in range(2))
    grads = lazy.conv2d_backward(grad, x, rng.standard_normal((3, 3, 3, 3)), padding=1)
    there = dask.compute(grads.weight, grads.bias)
    here = dask.compute(grads.weight, grads.bias, scheduler=dask.threaded.get)
    for one, other in zip(there, here, strict=True):
        assert_same_bits(one, other)


def test_workers_share_the_threads_of_their_machine(client: Any) -> None:
    """Seen from inside the tasks of both processes: each uses its share, not all the cores there are."""

    def watch() -> int:
        from fastconv import functional, get_num_threads

        plain = functional.conv.conv2d

        def conv2d(*args: Any, **options: Any) -> Any:
            conv2d.seen.append(get_num_threads())  # type: ignore[attr-defined]
            return plain(*args, **options)

        conv2d.seen = []  # type: ignore[attr-defined]
        functional.conv.conv2d = conv2d  # type: ignore[assignment]
        return get_num_threads()

    def seen() -> list[int]:
        from fastconv import functional

        found: list[int] = functional.conv.conv2d.seen  # type: ignore[attr-defined]
        functional.conv.conv2d = functional.conv2d
        return found

    before = client.run(watch)
    x = da.from_array(digits(8, 2, 40, 30), chunks=(1, 2, 20, 30))
    lazy.conv2d(x, digits(3, 2, 3, 3)).compute()
    counts = client.run(seen)
    assert sum(map(len, counts.values())) == 16
    for worker, threads in before.items():
        assert set(counts[worker]) == {max(1, threads // 2)}


def test_a_worker_that_gets_no_answer_knows_its_own_threads(monkeypatch: Any) -> None:
    """The scheduler may be busy, or going: the task does its work all the same."""

    def fail(*args: Any, **options: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(distributed.utils, "sync", fail)
    scheduler, state = SimpleNamespace(identity=None), SimpleNamespace(nthreads=3)
    worker = SimpleNamespace(address="tcp://nowhere", loop=None, scheduler=scheduler, state=state)
    assert shares._threads_of_workers(worker) == 3


# --- training ---------------------------------------------------------------------------------------


def make_net(seed: int = 0, layout: str = "NCHW") -> nn.Sequential:
    """In float64: roundings do not grow to anything that could be seen."""
    rng = np.random.default_rng(seed)
    options: dict[str, Any] = {"rng": rng, "dtype": np.float64}
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, layout=layout, **options),
        nn.ReLU(),
        nn.MaxPool2d(2, layout=layout),
        nn.Dropout(0.5, rng=rng),
        nn.Sequential(nn.Flatten(), nn.Dropout(0.2, rng=rng), nn.Linear(36, 3, **options)),
    )


def samples(count: int = 45) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 1, 6, 6)), rng.integers(0, 3, count)


def trained(client: Any, net: nn.Layer | None = None, **options: Any) -> tuple[nn.Layer, nn.History]:
    """A network after two epochs, trained on a cluster or, where there is none, here."""
    net = make_net() if net is None else net
    optimizer = nn.Adam(net, lr=0.01)
    options = {"epochs": 2, "batch_size": 8, "seed": 1, **options}
    if client is not None:
        options["client"] = client
    fit = nn.fit if client is None else lazy.fit
    return net, fit(net, *samples(), loss=nn.CrossEntropy(), optimizer=optimizer, **options)


def assert_close(one: nn.Layer, other: nn.Layer) -> None:
    for name, value in one.state_dict().items():
        np.testing.assert_allclose(other.state_dict()[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("parts", [None, 1, 3])
def test_training_takes_the_course_that_it_takes_in_one_process(client: Any, parts: int | None) -> None:
    """With dropout, whose choices must not depend on the split, and a last batch that is smaller."""
    validation = samples(20)
    alone, expected = trained(None, validation=validation)
    net, history = trained(client, validation=validation, parts=parts)
    assert_close(net, alone)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(getattr(history, name), getattr(expected, name), rtol=1e-9)
    # what comes after draws the same numbers
    x = samples()[0]
    np.testing.assert_allclose(net.forward(x, True), alone.forward(x, True), rtol=1e-7)


def test_the_split_decides_the_bits_and_the_workers_do_not(client: Any) -> None:
    first, _ = trained(client, parts=5)
    with distributed.Client(
        n_workers=1, threads_per_worker=3, processes=False, dashboard_address=":0"
    ) as other:
        again, _ = trained(other, parts=5)
    for name, value in first.state_dict().items():
        assert_same_bits(again.state_dict()[name], value)
    # this client again
    client.as_current()


def test_batch_normalisation_of_parts(client: Any) -> None:
    """Each part by its own statistics; the running estimates are means over the parts."""
    x, labels = samples(8)

    def build() -> nn.Sequential:
        layers = (
            nn.BatchNorm2d(1, momentum=0.25, dtype="f8"),
            nn.Flatten(),
            nn.Linear(36, 3, rng=0, dtype="f8"),
        )
        return nn.Sequential(*layers)

    net = build()
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "seed": None, "loss": nn.CrossEntropy()}
    lazy.fit(net, x, labels, optimizer=nn.SGD(net, 0), client=client, parts=2, **options)
    state = net.state_dict()
    assert state["0.num_batches_tracked"] == 1
    # the order of the samples is random: of both halves only what does not depend on it is known
    np.testing.assert_allclose(state["0.running_mean"], 0.25 * x.mean(), rtol=1e-9)
    assert 0.75 < state["0.running_var"] < 0.75 + 0.25 * x.size / (x.size - 4) * np.mean(x**2)


def test_a_killed_worker_costs_a_retry(client: Any) -> None:
    """In the middle of an epoch: its process is gone, and the weights are the same to the last bit."""
    expected, _ = trained(client, parts=2)
    workers = client.run(os.getpid)
    victim = sorted(workers.values())[0]
    steps = []

    def kill_in_step_four(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        steps.append(len(x))
        if len(steps) == 4:  # of six: just before the parts of this batch are sent out
            os.kill(victim, signal.SIGKILL)
        return x

    net, history = trained(client, parts=2, augment=kill_in_step_four)
    assert len(steps) == 12
    assert len(history.loss) == 2
    for name, value in expected.state_dict().items():
        assert_same_bits(net.state_dict()[name], value)
    client.wait_for_workers(2, timeout=60)
    assert victim not in client.run(os.getpid).values()


def test_wrong_arguments_are_found_before_anything_is_sent(client: Any) -> None:
    net = make_net()
    options: dict[str, Any] = {"loss": nn.CrossEntropy(), "optimizer": nn.SGD(net), "client": client}
    with pytest.raises(ValueError, match="fit: parts must be at least 1, got 0"):
        lazy.fit(net, *samples(), epochs=1, batch_size=8, parts=0, **options)
    with pytest.raises(ValueError, match="fit: batch_size must be at least 1, got 0"):
        lazy.fit(net, *samples(), epochs=1, batch_size=0, **options)
    # and what a worker finds is raised here
    x, labels = samples()
    with pytest.raises(ValueError, match="labels must be from 0 to 2"):
        lazy.fit(net, x, labels + 1, epochs=1, batch_size=8, **options)


# --- the demo ---------------------------------------------------------------------------------------


def result_of(capsys: Any, *arguments: str) -> dict[str, Any]:
    assert mnist.main(["--epochs", "2", "--batch-size", "16", "--quiet", "--json", *arguments]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_the_demo_on_a_cluster(client: Any, idx_folder: Path, capsys: Any) -> None:  # noqa: F811
    """With a network that has dropout, and the address of a scheduler."""
    data = ("--data", str(idx_folder))
    alone = result_of(capsys, *data)
    there = result_of(capsys, *data, "--cluster", client.scheduler.address)
    client.as_current()
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(there["history"][name], alone["history"][name], rtol=1e-3)
    assert there["train_digits"] == 64


def test_the_demo_starts_a_cluster_of_its_own(idx_folder: Path) -> None:  # noqa: F811
    """As typed; it ends without a word on stderr and leaves no process."""
    arguments = ["--data", str(idx_folder), "--epochs", "1", "--quiet", "--json", "--cluster", "local"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fastconv.mnist", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout.splitlines()[-1])["epochs"] == 1


def test_the_demo_without_a_cluster_to_be_found(idx_folder: Path, capsys: Any, monkeypatch: Any) -> None:  # noqa: F811
    data = ["--data", str(idx_folder)]
    with dask.config.set({"distributed.comm.timeouts.connect": "200ms"}):
        assert mnist.main([*data, "--cluster", "tcp://127.0.0.1:9"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("python -m fastconv.mnist: error: ")
    assert "tcp://127.0.0.1:9" in shown.err
    find = importlib.util.find_spec
    monkeypatch.setattr(mnist, "find_spec", lambda name: None if name == "distributed" else find(name))
    assert mnist.main([*data, "--cluster", "local"]) == 2
    assert 'pip install "fastconv[mnist,dask]"' in capsys.readouterr().err
