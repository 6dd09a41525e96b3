"""`warmup`, `show_config`, and the command line that offers them."""

from __future__ import annotations

from typing import Any

import pytest
from processes import python

import fastconv
from fastconv import jit
from fastconv.__main__ import main

WARMUP = """
    import gc
    import numpy as np, fastconv
    from fastconv import nn
    from fastconv.jit import Task
    from numba.core.dispatcher import Dispatcher

    def compiled():
        things = gc.get_objects()
        tasks = {id(thing) for thing in things if isinstance(thing, Task) and thing._address}
        functions = [thing for thing in things if isinstance(thing, Dispatcher)]
        return tasks | {(id(function), args) for function in functions for args in function.overloads}

    assert not any(isinstance(thing, Task) and thing._address for thing in gc.get_objects())
    fastconv.warmup(dtypes=['float32'], ops=['conv', 'max_pool', 'training'])
    before = compiled()
    assert len(before) > 20

    import numpy as np, fastconv
    x, weight = np.ones((2, 3, 40, 50), np.float32), np.ones((4, 3, 5, 5), np.float32)
    y = fastconv.conv2d(x, weight, stride=2)
    fastconv.conv2d_backward(y, x, weight, stride=2)
    y, indices = fastconv.max_pool2d(x, 3, return_indices=True)
    fastconv.max_pool2d_backward(y, indices, x.shape)

    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Dropout(), nn.Linear(8 * 11 * 11, 60), nn.ReLU(), nn.Linear(60, 10),
    )
    images, labels = np.ones((16, 1, 28, 28), np.float32), np.arange(16) % 10
    nn.fit(
        net, images, labels, loss=nn.CrossEntropy(), optimizer=nn.Adam(net), epochs=1, batch_size=16
    )

    print(len(compiled() - before))
"""


@pytest.mark.skipif(jit.DISABLED, reason="NUMBA_DISABLE_JIT: there is nothing to compile")
def test_warmup_leaves_nothing_to_compile() -> None:
    assert python(WARMUP).strip() == "0"


@pytest.mark.parametrize(
    "arguments", [{"dtypes": ["float16"]}, {"dtypes": "float32"}, {"ops": ["conv", "fft"]}]
)
def test_warmup_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^warmup: (dtypes|ops) are .*, got "):
        fastconv.warmup(**arguments)


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for word in (fastconv.__version__, "NumPy", "Numba", "threads", "vector registers", "kernel cache"):
        assert word in shown


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "warmup" in shown
    assert "info" in shown
