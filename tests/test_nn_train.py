"""state_dict, saving, and fit."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv import nn
from fastconv.nn.train import batch_gradients

needs_safetensors = pytest.mark.skipif(
    importlib.util.find_spec("safetensors") is None, reason="safetensors is not installed"
)
needs_tqdm = pytest.mark.skipif(importlib.util.find_spec("tqdm") is None, reason="tqdm is not installed")


def make_net(seed: int = 0, layout: str = "NCHW") -> nn.Sequential:
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, (3, 2), padding="same", layout=layout, rng=rng),
        nn.BatchNorm2d(4, layout=layout),
        nn.ReLU(),
        nn.MaxPool2d(2, layout=layout),
        nn.Dropout(0.25, rng=rng),
        nn.Sequential(nn.Flatten(layout=layout), nn.Linear(4 * 3 * 3, 2, rng=rng)),
    )


def separable(n: int = 75, seed: int = 0) -> tuple[Any, Any]:
    """Images whose left or right half is brighter."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 1, 6, 6)).astype(np.float32) * 0.3
    labels = rng.integers(2, size=n)
    x[labels == 0, :, :, :3] += 1
    x[labels == 1, :, :, 3:] += 1
    return x, labels


def test_a_pickled_network_is_one_at_rest() -> None:
    """Also from between forward and backward; layers go on sharing a generator."""
    net = make_net()
    x, _ = separable(8)
    state = net.state_dict()
    y = net.forward(x, training=True)
    net.backward(np.ones_like(y))
    net.load_state_dict(state)
    other = pickle.loads(pickle.dumps(net))
    for name, value in state.items():
        np.testing.assert_array_equal(other.state_dict()[name], value)
    assert other.grads == {}
    assert len(net.grads) == 6
    with pytest.raises(RuntimeError, match="backward needs a forward"):
        other.backward(y)
    # the same dropout from here on
    np.testing.assert_array_equal(other.forward(x, training=True), net.forward(x, training=True))


def test_gradients_may_come_from_elsewhere() -> None:
    """`fit` with a function for the gradients: called for each batch, and trusted."""
    x, labels = separable(20)
    nets = [make_net(), make_net()]
    sizes = []

    def gradients(samples: Any, target: Any) -> tuple[float, Any]:
        sizes.append(len(samples))
        helper = make_net()
        helper.load_state_dict(nets[1].state_dict())
        helper.layers[4]._rng = nets[1].layers[4]._rng
        value, pred = batch_gradients(helper, nn.CrossEntropy(), samples, target)
        nets[1]._set_grads(helper.grads)
        for mine, its in zip(nets[1]._leaves(), helper._leaves(), strict=True):
            for name, buffer in its._buffers.items():
                mine._buffers[name][...] = buffer
        return value, pred

    histories = [
        nn.fit(
            net,
            x,
            labels,
            loss=nn.CrossEntropy(),
            optimizer=nn.Adam(net),
            epochs=2,
            batch_size=8,
            seed=0,
            **more,
        )
        for net, more in zip(nets, ({}, {"gradients": gradients}), strict=True)
    ]
    assert sizes == [8, 8, 4] * 2
    assert histories[0].loss == histories[1].loss
    for name, value in nets[0].state_dict().items():
        np.testing.assert_array_equal(nets[1].state_dict()[name], value)


# --- state_dict ---------------------------------------------------------------------------------

# what PyTorch says for the same layers
NAMES = {
    "0.weight": (4, 1, 3, 2),
    "0.bias": (4,),
    "1.weight": (4,),
    "1.bias": (4,),
    "1.running_mean": (4,),
    "1.running_var": (4,),
    "1.num_batches_tracked": (),
    "5.1.weight": (2, 36),
    "5.1.bias": (2,),
}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_state_dict_has_the_names_and_shapes_of_pytorch(layout: str) -> None:
    state = make_net(layout=layout).state_dict()
    assert {name: value.shape for name, value in state.items()} == NAMES
    assert list(state) == list(NAMES)
    assert state["1.num_batches_tracked"].dtype == np.int64
    assert all(value.flags.c_contiguous for value in state.values())


def test_state_dict_is_a_copy() -> None:
    net = make_net()
    state = net.state_dict()
    before = net.state_dict()
    for value in state.values():
        value[...] = 9
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_load_state_dict_crosses_layouts_and_keeps_the_arrays() -> None:
    source, target = make_net(1), make_net(2, "NHWC")
    arrays = dict(target.params)
    target.load_state_dict(source.state_dict())
    for name, value in target.params.items():
        assert value is arrays[name]
    x = separable()[0]
    expected = source.forward(x)
    np.testing.assert_allclose(target.forward(x.reshape(-1, 6, 6, 1)), expected, rtol=1e-4, atol=1e-5)


def test_load_state_dict_converts_floats() -> None:
    net, source = make_net(), make_net(1)
    state: dict[str, Any] = {
        name: value.astype(np.float64 if value.dtype.kind == "f" else np.int32)
        for name, value in source.state_dict().items()
    }
    state["1.num_batches_tracked"] = np.array(3, np.int32)
    net.load_state_dict(state)
    assert {param.dtype for param in net.params.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(net.params["0.weight"], source.params["0.weight"])
    assert net.state_dict()["1.num_batches_tracked"] == 3


def damaged(case: str) -> dict[str, Any]:
    state: dict[str, Any] = make_net(1).state_dict()
    match case:
        case "missing":
            del state["5.1.bias"], state["0.weight"]
        case "unexpected":
            state["6.weight"] = np.zeros(3)
        case "shape":
            state["5.1.weight"] = state["5.1.weight"].T
        case "kind":
            state["5.1.weight"] = np.zeros((2, 36), np.int64)
        case "count":
            state["1.num_batches_tracked"] = np.array(1.5)
        case "object":
            state["5.1.bias"] = [None, None]
    return state


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("missing", ValueError, r"missing '0\.weight', '5\.1\.bias'$"),
        ("unexpected", ValueError, r"unexpected '6\.weight'$"),
        ("shape", ValueError, r"'5\.1\.weight' has shape \(36, 2\), must be \(2, 36\)"),
        ("kind", TypeError, r"'5\.1\.weight' has dtype int64, cannot become float32"),
        ("count", TypeError, r"'1\.num_batches_tracked' has dtype float64, cannot become int64"),
        ("object", TypeError, r"'5\.1\.bias' has dtype object"),
    ],
)
def test_load_state_dict_changes_all_or_nothing(case: str, error: type[Exception], message: str) -> None:
    net = make_net()
    before = net.state_dict()
    with pytest.raises(error, match=message):
        net.load_state_dict(damaged(case))
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


# --- files --------------------------------------------------------------------------------------


@needs_safetensors
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_save_and_load(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    source, target = make_net(1), make_net(2, layout)
    source.forward(separable()[0], training=True)
    nn.save(source, path)
    nn.load(target, path)
    a, b = source.state_dict(), target.state_dict()
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])
    # saved from the other layout it is the same file
    nn.save(target, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "net.safetensors"]


@needs_safetensors
def test_other_programs_read_the_file(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    net = make_net(layout="NHWC")
    nn.save(net, tmp_path / "net")
    state = load_file(tmp_path / "net")
    assert {name: value.shape for name, value in state.items()} == NAMES
    np.testing.assert_array_equal(state["0.weight"], net.params["0.weight"].transpose(3, 2, 0, 1))


@needs_safetensors
def test_load_refuses_what_is_no_such_file(tmp_path: Path) -> None:
    net = make_net()
    with pytest.raises(FileNotFoundError, match="missing"):
        nn.load(net, tmp_path / "missing")
    nn.save(net, tmp_path / "net")
    whole = (tmp_path / "net").read_bytes()
    for name, data in {
        "empty": b"",
        "text": b"no tensors here, just words",
        "cut": whole[:-5],
        "header": whole[:20],
        "huge": b"\xff" * 7 + b"\x00" + whole[8:],
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: cannot be read as safetensors"):
            nn.load(net, path)


@needs_safetensors
def test_load_of_another_network_names_the_file(tmp_path: Path) -> None:
    nn.save(nn.Linear(2, 3), tmp_path / "net")
    with pytest.raises(ValueError, match=r"missing '0\.weight'") as caught:
        nn.load(make_net(), tmp_path / "net")
    assert caught.value.__notes__ == [f"in the file {tmp_path / 'net'}"]


@needs_safetensors
def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "net"
    nn.save(make_net(1), path)
    old = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        nn.save(make_net(2), path)
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("function", [nn.save, nn.load])
def test_without_safetensors(function: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r'pip install "fastconv\[nn\]"'):
        function(make_net(), tmp_path / "net")


# --- fit ----------------------------------------------------------------------------------------


def trained(seed: int = 0, **kwargs: Any) -> tuple[nn.Sequential, nn.History]:
    net = make_net(seed)
    x, labels = separable()
    settings: dict[str, Any] = {
        "loss": nn.CrossEntropy(),
        "optimizer": nn.Adam(net, 1e-2),
        "epochs": 8,
        "batch_size": 16,
        "validation": separable(40, seed=1),
        "seed": seed,
    } | kwargs
    return net, nn.fit(net, x, labels, **settings)


def test_fit_learns() -> None:
    net, history = trained()
    assert history.loss[-1] < 0.2 < history.loss[0]
    assert history.val_accuracy[-1] >= 0.95
    lengths = {name: len(values) for name, values in vars(history).items()}
    assert lengths == dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy", "seconds"), 8)
    x, labels = separable(40, seed=1)
    pred = net.predict(x, batch_size=7)
    assert (pred.argmax(1) == labels).mean() == pytest.approx(history.val_accuracy[-1])
    assert nn.CrossEntropy().forward(pred, labels) == pytest.approx(history.val_loss[-1], rel=1e-5)


def test_one_seed_gives_the_same_bits() -> None:
    (a, history_a), (b, history_b) = trained(), trained()
    for name, value in a.state_dict().items():
        assert value.tobytes() == b.state_dict()[name].tobytes(), name
    assert history_a.loss == history_b.loss
    assert history_a.val_loss == history_b.val_loss
    c, _ = trained(1)
    assert not np.array_equal(c.params["0.weight"], a.params["0.weight"])


class Spy(nn.Flatten):
    """Remembers the batches that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, list[float]]] = []

    def forward(self, x: Any, training: bool = False) -> Any:
        self.seen.append((training, x.ravel().tolist()))
        return super().forward(x, training)


def test_every_sample_once_an_epoch_in_a_new_order() -> None:
    x = np.arange(10, dtype=np.float32)[:, None]
    spy = Spy()
    net = nn.Sequential(spy, nn.Linear(1, 2, rng=0))
    nn.fit(
        net,
        x,
        np.arange(10) % 2,
        loss=nn.CrossEntropy(),
        optimizer=nn.SGD(net),
        epochs=2,
        batch_size=4,
        validation=(x[:3], np.zeros(3, int)),
        seed=0,
    )
    assert [len(batch) for _, batch in spy.seen] == [4, 4, 2, 3] * 2
    assert [training for training, _ in spy.seen] == [True, True, True, False] * 2
    first, second = ([v for _, b in spy.seen[i : i + 3] for v in b] for i in (0, 4))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_figures_are_means_over_samples_not_batches() -> None:
    """With lr = 0 nothing moves, so the means must be those over all samples at once."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2, rng=0))
    x, labels = separable(11)
    history = nn.fit(
        net,
        x,
        labels,
        loss=nn.CrossEntropy(),
        optimizer=nn.SGD(net, lr=0),
        epochs=1,
        batch_size=4,
        validation=(x, labels),
    )
    pred = net.predict(x)
    value = nn.CrossEntropy().forward(pred, labels)
    accuracy = (pred.argmax(1) == labels).mean()
    assert history.loss == pytest.approx([value], rel=1e-5)
    assert history.val_loss == pytest.approx([value], rel=1e-5)
    assert history.accuracy == history.val_accuracy == pytest.approx([accuracy])


def test_regression_has_no_accuracy() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 3))
    target = x @ np.array([[1.0], [-2.0], [0.5]]) + 0.25
    net = nn.Linear(3, 1, rng=0, dtype=np.float64)
    history = nn.fit(
        net,
        x,
        target,
        loss=nn.MSE(),
        optimizer=nn.SGD(net, 0.1),
        epochs=40,
        batch_size=16,
        seed=0,
    )
    assert history.accuracy == history.val_accuracy == history.val_loss == []
    assert history.loss[-1] < 1e-6
    np.testing.assert_allclose(net.params["weight"], [[1, -2, 0.5]], atol=1e-3)


def test_on_epoch_may_set_the_learning_rate() -> None:
    net = make_net()
    optimizer = nn.SGD(net, 0.1)
    rates = []

    def halve(history: nn.History) -> None:
        rates.append((len(history.loss), optimizer.lr))
        optimizer.lr /= 2

    x, labels = separable()
    nn.fit(
        net,
        x,
        labels,
        loss=nn.CrossEntropy(),
        optimizer=optimizer,
        epochs=3,
        batch_size=32,
        on_epoch=halve,
    )
    assert rates == [(1, 0.1), (2, 0.05), (3, 0.025)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "fit: epochs must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "fit: batch_size must be at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, r"fit: batch_size must be an int, got 2\.5"),
        ({"validation": (np.ones((2, 1, 6, 6)),)}, ValueError, r"validation must be \(x, labels\)"),
        (
            {"validation": (np.ones((2, 1, 6, 6), np.float32), np.zeros(3, int))},
            ValueError,
            "validation x and its labels must have as many samples",
        ),
        (
            {"validation": (np.ones((0, 1, 6, 6), np.float32), np.zeros(0, int))},
            ValueError,
            "validation x has no samples",
        ),
        ({"optimizer": nn.SGD(nn.Linear(2, 2))}, ValueError, "made for another network"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trained(**change)


def test_wrong_samples() -> None:
    net = make_net()
    before = net.state_dict()
    settings: dict[str, Any] = {
        "loss": nn.CrossEntropy(),
        "optimizer": nn.SGD(net),
        "epochs": 1,
        "batch_size": 4,
    }
    x, labels = separable(8)
    with pytest.raises(ValueError, match=r"as many samples, got shapes \(8, 1, 6, 6\) and \(7,\)"):
        nn.fit(net, x, labels[:7], **settings)
    with pytest.raises(ValueError, match="x has no samples"):
        nn.fit(net, x[:0], labels[:0], **settings)
    with pytest.raises(TypeError, match="x must be a float32 or float64 array, got uint8"):
        nn.fit(net, x.astype(np.uint8), labels, **settings)
    with pytest.raises(TypeError, match="x must be a float32 or float64 array, got list"):
        nn.fit(net, x.tolist(), labels, **settings)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@needs_tqdm
def test_progress_shows_epochs_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    trained(epochs=2, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 1/2" in shown
    assert "epoch 2/2: 100%" in shown
    assert "val_accuracy=" in shown


def test_progress_without_tqdm(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r'pip install "fastconv\[nn\]"'):
        trained(progress=True)
