"""`fastconv.sklearn`: scikit-learn's own checks, and what people do with an estimator."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from oracles import assert_same, assert_same_bits
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastconv import nn
from fastconv.sklearn import CNNClassifier

#: Quick, and good enough for the data of the checks.
SMALL = CNNClassifier(channels=(4,), hidden=16, epochs=15, learning_rate=1e-2, random_state=0)


@parametrize_with_checks([SMALL])
def test_conventions(estimator: Any, check: Any) -> None:
    """None is expected to fail. What scikit-learn leaves out itself is the check of other libraries' arrays,
    for which SciPy has to be told to support them.
    """
    check(estimator)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """600 handwritten ones of 8 x 8 pixels, in 64 columns; shuffled, since they come writer by writer."""
    X, y = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(y))[:600]
    return X[chosen], y[chosen]


def test_pipeline_in_a_grid_search(digits: Any) -> None:
    X, y = digits
    model = make_pipeline(MinMaxScaler(), CNNClassifier(learning_rate=5e-3, random_state=0))
    search = GridSearchCV(model, {"cnnclassifier__epochs": [1, 15]}, cv=2)
    search.fit(X[:400], y[:400])
    assert search.best_params_ == {"cnnclassifier__epochs": 15}
    assert len(search.best_estimator_[-1].history_.loss) == 15
    assert search.score(X[400:], y[400:]) > 0.85


def test_one_seed_one_result(digits: Any) -> None:
    X, y = digits[0][:100], digits[1][:100]
    model = clone(SMALL).set_params(epochs=2, dropout=0.5)
    first = model.fit(X, y).predict_proba(X)
    assert_same_bits(first, clone(model).fit(X, y).predict_proba(X))
    assert_same_bits(first, pickle.loads(pickle.dumps(model)).predict_proba(X))
    other = clone(model).set_params(random_state=1).fit(X, y).predict_proba(X)
    assert not np.array_equal(first, other)
    assert first.dtype == np.float32
    np.testing.assert_allclose(first.sum(axis=1), 1, rtol=1e-5)
    assert_same(model.predict(X), model.classes_[first.argmax(axis=1)])


def test_images_and_their_columns(digits: Any) -> None:
    """The same samples in several shapes."""
    X, y = digits[0][:60], digits[1][:60]
    model = clone(SMALL).set_params(epochs=2)
    expected = model.fit(X, y).predict_proba(X)
    assert model.image_shape_ == (1, 8, 8)
    for images in (X.reshape(-1, 8, 8), X.reshape(-1, 1, 8, 8)):
        assert_same_bits(model.predict_proba(images), expected)
        assert_same_bits(clone(model).fit(images, y).predict_proba(X), expected)
    color = clone(model).set_params(image_shape=(2, 4, 8)).fit(X, y)
    assert color.net_.layers[0].in_channels == 2
    assert_same_bits(color.predict_proba(X), color.predict_proba(X.reshape(-1, 2, 4, 8)))
    signals = clone(model).fit(X[:, :10], y)
    assert signals.image_shape_ == (1, 1, 10)
    assert signals.predict(X[:, :10]).shape == (60,)


def test_the_network(digits: Any) -> None:
    X, y = digits[0][:40], np.array(list("abcdefghij"))[digits[1][:40]]
    model = CNNClassifier(channels=(3, 5, 7), kernel_size=2, dropout=0.2, hidden=9, epochs=1, random_state=0)
    model.fit(X, y)
    kinds = [type(layer) for layer in model.net_.layers]
    assert kinds == [nn.Conv2d, nn.ReLU, nn.MaxPool2d] * 3 + [
        nn.Flatten,
        nn.Dropout,
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]
    assert set(model.predict(X)) <= set("abcdefghij")
    plain = CNNClassifier(channels=(), hidden=0, epochs=1).fit(X[:, :6], y)
    assert [type(layer) for layer in plain.net_.layers] == [nn.Flatten, nn.Linear]
    # three poolings leave one row of one cell, which cannot be halved again
    deep = CNNClassifier(channels=(2, 2, 2, 2), epochs=1).fit(X, y)
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in deep.net_.layers) == 3


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"image_shape": (5, 5)}, (4, 64), r"shape \(64,\), which is no image of shape \(1, 5, 5\)"),
        ({"image_shape": (64,)}, (4, 4, 16), "which is no image of shape"),
        ({"image_shape": (2, 2, 4, 4)}, (4, 64), r"image_shape must be \(H, W\) or \(C, H, W\)"),
        ({"image_shape": (-8, -8)}, (4, 64), r"image_shape must be \(H, W\) or \(C, H, W\)"),
        ({}, (4, 2, 2, 4, 4), "1 to 3 axes"),
        ({"epochs": 0}, (4, 64), "epochs must be at least 1"),
        ({"channels": (4, 0)}, (4, 64), "out_channels must be at least 1"),
    ],
)
def test_errors(options: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CNNClassifier(**options).fit(np.ones(shape), [0, 0, 1, 1])


def test_other_images_than_in_training() -> None:
    model = CNNClassifier(epochs=1).fit(np.ones((4, 6, 5)), [0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"shape \(5, 6\), which is no image of shape \(1, 6, 5\)"):
        model.predict(np.ones((2, 5, 6)))
