"""A user's program under ``mypy --strict``: what is public has types, and they are right."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from processes import HOME, environment

PROGRAM = '''
"""Uses what users use."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fastconv
from fastconv import ConvGrads, PackedWeight, Plan, nn


def layer(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    y = fastconv.conv2d(x, weight, stride=(1, 2), padding=((0, 1), (1, 0)), activation="relu")
    fastconv.max_pool2d(y, 2, out=y)
    largest: np.ndarray = fastconv.max_pool2d(y, 2)
    largest, places = fastconv.max_pool2d(y, 2, return_indices=True)
    fastconv.max_pool2d_backward(largest, places, y.shape)
    _, places = fastconv.adaptive_max_pool2d(y, 2, True)
    z: np.ndarray = fastconv.avg_pool2d(y, (2, 3), layout="NHWC")
    return z


def gradients(grad: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray | None, ...]:
    grads: ConvGrads = fastconv.conv2d_backward(grad, x, weight, padding="same", needs=(True, True, False))
    columns = fastconv.im2col(x, 3, padding=1)
    back: np.ndarray = fastconv.col2im(columns, (8, 8), 3, padding=1)
    return grads.x, grads.weight, back


def planned(x: np.ndarray, weight: np.ndarray) -> str:
    plan: Plan = fastconv.explain(x.shape, weight.shape, op="input_grad", dtype=np.float64)
    packed: PackedWeight = fastconv.prepack(weight, x_shape=x.shape)
    with fastconv.num_threads(1):
        fastconv.conv2d(x, packed)
    fastconv.set_float32_precision("highest")
    fastconv.warmup(dtypes=["float32"], ops=["conv"])
    return plan.algorithm + ", ".join(plan.rejected.values()) + str(plan.workspace + plan.flops)


class Scale(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.params["factor"] = np.ones(1, np.float32)

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        self._keep(training, x)
        return np.asarray(self.params["factor"] * x)


def train(x: np.ndarray, labels: np.ndarray, file: Path) -> float:
    net = nn.Sequential(nn.Conv2d(1, 8, 3, rng=0), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10), Scale())
    optimizer = nn.AdamW(net, lr=1e-3)
    history: nn.History = nn.fit(
        net, x, labels, loss=nn.CrossEntropy(), optimizer=optimizer, epochs=1, batch_size=8,
        schedule=nn.CosineAnnealingLR(optimizer, 10), augment=nn.RandomAffine(10),
    )
    nn.save(net, file)
    state: dict[str, np.ndarray] = net.state_dict()
    return history.loss[-1] + len(state) + float(net.predict(x).mean())
'''

WRONG = """
import numpy as np

import fastconv

x = np.ones((1, 1, 4, 4))
fastconv.conv2d(x)  # no weight
fastconv.conv2d(x, x, strides=2)  # no such argument
fastconv.explain(x.shape, x.shape).algorithmus
y: str = fastconv.avg_pool2d(x, 2)
"""


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_users_programs_are_checked(tmp_path: Path) -> None:
    """With the settings that a user has: none but --strict."""
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(dedent(PROGRAM))
    wrong.write_text(dedent(WRONG))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "", str(right), str(wrong)],
        cwd=tmp_path,
        env=environment(MYPYPATH=str(HOME), MYPY_CACHE_DIR=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("right.py")], done.stdout
    found = [line for line in lines if line.startswith("wrong.py") and ": error: " in line]
    assert [int(line.split(":")[1]) for line in found] == [7, 8, 9, 10], done.stdout


def test_the_marker_is_installed() -> None:
    assert (HOME / "fastconv" / "py.typed").exists()
