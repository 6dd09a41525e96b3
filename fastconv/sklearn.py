"""A convolutional network as a scikit-learn estimator.

>>> from sklearn.datasets import load_digits
>>> from sklearn.model_selection import train_test_split
>>> from sklearn.pipeline import make_pipeline
>>> from sklearn.preprocessing import MinMaxScaler
>>> from fastconv.sklearn import CNNClassifier
>>> X, y = load_digits(return_X_y=True)  # 8 x 8 pixels in 64 columns
>>> X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
>>> model = make_pipeline(MinMaxScaler(), CNNClassifier(epochs=10, random_state=0))
>>> model.fit(X_train, y_train).score(X_test, y_test) > 0.9
True
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from fastconv import nn

__all__ = ["CNNClassifier"]


class CNNClassifier(ClassifierMixin, BaseEstimator):
    """A small convolutional network that is trained by Adam on the cross-entropy.

    Convolutions, each followed by a ReLU and 2x2 max pooling, then a hidden layer and one output per class.

    Parameters
    ----------
    image_shape : (H, W) or (C, H, W), optional
        What the columns of X are, row by row. None takes as many columns as a square has for a square, and
        others for signals: images of a single row.
    channels : sequence of int
        Of each convolution.
    kernel_size : int
        Of all convolutions; images keep their size.
    hidden : int
        Units of the hidden layer; 0 leaves it out.
    dropout : float
        Part of the inputs of the hidden layer that are dropped while training.
    epochs, batch_size : int
    learning_rate, weight_decay : float
        Of `fastconv.nn.AdamW`.
    random_state : None, int or numpy.random.RandomState
        Of the first weights, the dropout and the order of the samples; one int, one result.
    verbose : bool
        Whether to show a progress bar; needs tqdm.

    Attributes
    ----------
    classes_ : ndarray
    n_features_in_ : int
    image_shape_ : (C, H, W)
    net_ : fastconv.nn.Sequential
        From images (N, C, H, W) in float32 to logits; `fastconv.nn.save` writes it.
    history_ : fastconv.nn.History
        Loss and accuracy of each epoch.

    Notes
    -----
    X is (n_samples, n_features), or has images as such: (n_samples, H, W) or (n_samples, C, H, W). Its values
    should be about as large as 1, as `sklearn.preprocessing.MinMaxScaler` or ``StandardScaler`` make them.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.zeros((4, 6, 5)), ["ring", "ring", "cross", "cross"]
    >>> X[2:, 2] = X[2:, :, 2] = 1
    >>> model = CNNClassifier(epochs=20, learning_rate=0.01, random_state=0).fit(X, y)
    >>> model.image_shape_, model.predict(X[1:3]).tolist()
    ((1, 6, 5), ['ring', 'cross'])
    """

    classes_: np.ndarray
    n_features_in_: int

    def __init__(
        self,
        image_shape: Sequence[int] | None = None,
        *,
        channels: Sequence[int] = (16, 32),
        kernel_size: int = 3,
        hidden: int = 64,
        dropout: float = 0.0,
        epochs: int = 20,
        batch_size: int = 32,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.0,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.image_shape = image_shape
        self.channels = channels
        self.kernel_size = kernel_size
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> CNNClassifier:
        """Train a new network.

        Parameters
        ----------
        X : array-like, (n_samples, n_features), or images
        y : array-like, (n_samples,)
            Classes, of any dtype.

        Returns
        -------
        CNNClassifier
            This one.

        Raises
        ------
        ValueError
            Where X is not finite or does not have `image_shape`, or y is not of classes; and where a
            parameter is out of range.
        """
        X, shape = _columns(X)
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        self.image_shape_ = _image_shape(self.image_shape, shape or X.shape[1:])
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=2)
        self.net_ = self._network(np.random.default_rng(seeds[0]))
        optimizer = nn.AdamW(self.net_, lr=self.learning_rate, weight_decay=self.weight_decay)
        images = X.reshape(len(X), *self.image_shape_)
        self.history_ = nn.fit(
            self.net_,
            images,
            labels,
            loss=nn.CrossEntropy(),
            optimizer=optimizer,
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=int(seeds[1]),
            progress=self.verbose,
        )
        self.net_.forward(images[:1])  # which drops what the training has kept
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, in the order of `classes_`.

        Parameters
        ----------
        X : array-like, of as many features as in `fit`, or images of that shape

        Returns
        -------
        float32 ndarray, (n_samples, n_classes)
        """
        check_is_fitted(self)
        X, shape = _columns(X)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        _image_shape(self.image_shape_, shape or X.shape[1:])
        logits = self.net_.predict(X.reshape(len(X), *self.image_shape_))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of each sample.

        Parameters
        ----------
        X : array-like, of as many features as in `fit`, or images of that shape

        Returns
        -------
        ndarray, (n_samples,)
        """
        probabilities = self.predict_proba(X)
        found: np.ndarray = self.classes_[probabilities.argmax(axis=1)]
        return found

    def _network(self, rng: np.random.Generator) -> nn.Sequential:
        channels, height, width = self.image_shape_
        layers: list[nn.Layer] = []
        for out_channels in self.channels:
            layers += [
                nn.Conv2d(channels, out_channels, self.kernel_size, padding="same", rng=rng),
                nn.ReLU(),
            ]
            window = (min(2, height), min(2, width))
            if window != (1, 1):
                layers.append(nn.MaxPool2d(window))
            channels, height, width = out_channels, height // window[0], width // window[1]
        layers.append(nn.Flatten())
        units = channels * height * width
        if self.dropout:
            layers.append(nn.Dropout(self.dropout, rng=rng))
        if self.hidden:
            layers += [nn.Linear(units, self.hidden, rng=rng), nn.ReLU()]
            units = self.hidden
        return nn.Sequential(*layers, nn.Linear(units, len(self.classes_), rng=rng))


def _columns(X: Any) -> tuple[Any, tuple[int, ...] | None]:
    """Images as rows of a matrix, and the shape that each of them had; anything else as it is."""
    if not isinstance(X, np.ndarray) or X.ndim <= 2:
        return X, None
    return X.reshape(len(X), prod(X.shape[1:])), X.shape[1:]


def _image_shape(wanted: Sequence[int] | None, found: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W) of the samples; `found` is a sample's own shape.

    >>> _image_shape(None, (64,)), _image_shape(None, (10,)), _image_shape((3, 4), (12,))
    ((1, 8, 8), (1, 1, 10), (1, 3, 4))
    """
    if len(found) > 3:
        raise ValueError(f"CNNClassifier: a sample of X must have 1 to 3 axes, got shape {found}")
    if wanted is None:
        side = isqrt(found[0])
        square = (side, side) if side * side == found[0] else (1, found[0])
        wanted = square if len(found) == 1 else found
    shape = (1,) * (3 - len(wanted)) + tuple(int(size) for size in wanted)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"CNNClassifier: image_shape must be (H, W) or (C, H, W), got {wanted}")
    own = (1,) * (3 - len(found)) + found
    if prod(found) != prod(shape) or (len(found) > 1 and own != shape):
        raise ValueError(
            f"CNNClassifier: a sample of X has shape {found}, which is no image of shape {shape}"
        )
    return shape
