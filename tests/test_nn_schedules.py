"""Learning rates that change, and images that do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastconv import nn


def rates(schedule: nn.Schedule, steps: int) -> list[float]:
    """The first rate and those after each step."""
    found = [schedule.optimizer.lr]
    for _ in range(steps):
        schedule.step()
        found.append(schedule.optimizer.lr)
    return found


def sgd(lr: float = 0.1) -> nn.SGD:
    return nn.SGD(nn.Linear(2, 1, rng=0), lr)


# What torch 2.13 gives for the same arguments.
CYCLES = {
    (1.0, 11, 0.3): [
        *(0.04, 0.4223411137347358, 0.9602614247226174, 0.9797465678213015, 0.8844757247686303),
        *(0.7260870492975283, 0.5305827080875998, 0.3300580289872949, 0.15743251279950787),
        *(0.041045543206290856, 4e-06),
    ],
    (0.5, 6, 0.5): [0.02, 0.26, 0.5, 0.3750005, 0.1250015, 2e-06],
}


@pytest.mark.parametrize("case", CYCLES)
def test_one_cycle_is_pytorchs(case: tuple[float, int, float]) -> None:
    max_lr, total, share = case
    schedule = nn.OneCycleLR(sgd(), max_lr, total, share)
    assert rates(schedule, total - 1) == pytest.approx(CYCLES[case], rel=1e-9)
    schedule.step()
    assert schedule.optimizer.lr == pytest.approx(CYCLES[case][-1])
    with pytest.raises(ValueError, match=f"total_steps is {total}"):
        schedule.step()


@pytest.mark.parametrize(("total", "share"), [(1, 0.3), (1, 1.0), (2, 0.0), (10, 0.1), (3, 1.0)])
def test_one_cycle_of_few_steps(total: int, share: float) -> None:
    found = rates(nn.OneCycleLR(sgd(), 1.0, total, share), total)
    assert all(0 < rate <= 1 for rate in found)


def test_cosine() -> None:
    found = rates(nn.CosineAnnealingLR(sgd(0.3), T_max=10, eta_min=0.1), 10)
    assert found == pytest.approx([0.2 + 0.1 * math.cos(math.pi * i / 10) for i in range(11)])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.OneCycleLR("adam", 1.0, 10), TypeError, "must be an Optimizer"),  # type: ignore[arg-type]
        (lambda: nn.OneCycleLR(sgd(), 1.0, 0), ValueError, "total_steps"),
        (lambda: nn.OneCycleLR(sgd(), 1.0, 10, 1.5), ValueError, "pct_start"),
        (lambda: nn.OneCycleLR(sgd(), 0.0, 10), ValueError, "max_lr"),
        (lambda: nn.CosineAnnealingLR(sgd(), 0), ValueError, "T_max"),
        (lambda: nn.RandomAffine(-1), ValueError, "degrees"),
        (lambda: nn.RandomAffine(scale=1), ValueError, "below 1"),
        (
            lambda: nn.RandomAffine()(np.ones((3, 28, 28)), np.random.default_rng(0)),
            ValueError,
            "float images",
        ),
    ],
)
def test_wrong_arguments(make, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        make()


def test_fit_steps_the_schedule_and_changes_the_images() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((20, 1, 6, 6), np.float32), rng.integers(0, 2, 20)
    seen: list[np.ndarray] = []

    def augment(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen.append(samples)
        return nn.RandomAffine(10, 1)(samples, rng)

    def train() -> list[float]:
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2, rng=0))
        optimizer = nn.Adam(net)
        schedule = nn.OneCycleLR(optimizer, 0.1, 6)
        settings = {"loss": nn.CrossEntropy(), "epochs": 2, "batch_size": 8, "seed": 0}
        history = nn.fit(net, x, labels, optimizer=optimizer, schedule=schedule, augment=augment, **settings)
        assert schedule.steps == 6
        return history.loss

    assert train() == train()
    assert len(seen) == 12
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="another optimizer"):
        nn.fit(
            net,
            np.ones((4, 3), np.float32),
            np.zeros(4, int),
            loss=nn.CrossEntropy(),
            optimizer=nn.Adam(net),
            schedule=nn.CosineAnnealingLR(sgd(), 3),
            epochs=1,
            batch_size=2,
        )


# --- RandomAffine -------------------------------------------------------------------------------


class Fixed:
    """In place of a generator: the same numbers from -1 to 1 for every image."""

    def __init__(self, angle: float = 0, factor: float = 0, down: float = 0, right: float = 0) -> None:
        self.numbers = [angle, factor, down, right]

    def uniform(self, low: float, high: float, size: tuple[int, int]) -> np.ndarray:
        return np.repeat(np.array(self.numbers, float), size[1]).reshape(size)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_images_move_turn_and_grow(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 7)).astype(dtype)
    affine = nn.RandomAffine(90, translate=2, scale=0.5, fill=9)

    def change(**numbers: float) -> np.ndarray:
        return affine(x, Fixed(**numbers))  # type: ignore[arg-type]

    close = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(change(), x, **close)
    moved = change(down=1, right=-0.5)
    np.testing.assert_allclose(moved[:, :, 2:, :-1], x[:, :, :-2, 1:], **close)
    assert (moved[:, :, :2] == 9).all()
    assert (moved[:, :, :, -1] == 9).all()
    np.testing.assert_allclose(change(right=0.25)[..., 1:], (x[..., 1:] + x[..., :-1]) / 2, **close)
    turned = change(angle=1)
    assert any(np.allclose(turned, np.rot90(x, k, (2, 3)), atol=1e-5) for k in (1, 3))
    # twice as large, about the centre
    np.testing.assert_allclose(nn.RandomAffine(scale=0.999)(x, Fixed(factor=1))[..., 3, 3], x[..., 3, 3])  # type: ignore[arg-type]


def test_images_do_not_change_alike() -> None:
    x = np.tile(np.random.default_rng(0).standard_normal((1, 1, 9, 9)), (6, 1, 1, 1))
    before = x.copy()
    y = nn.RandomAffine(20, 1, 0.1)(x, np.random.default_rng(0))
    assert len({image.tobytes() for image in y}) == 6
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(y, nn.RandomAffine(20, 1, 0.1)(x, np.random.default_rng(0)))
    assert nn.RandomAffine(20)(x[:0], np.random.default_rng(0)).shape == (0, 1, 9, 9)
