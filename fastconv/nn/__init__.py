"""Small networks: explicit layers with forward and backward, losses, optimisers, `fit`.

>>> import fastconv.nn as nn
>>> net = nn.Sequential(
...     nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
...     nn.Linear(8 * 14 * 14, 10),
... )
>>> net
Sequential(
  0: Conv2d(1, 8, kernel_size=(3, 3), padding=1)
  1: ReLU()
  2: MaxPool2d(kernel_size=(2, 2))
  3: Flatten()
  4: Linear(1568, 10)
)
"""

from fastconv.nn.activations import LeakyReLU, LogSoftmax, ReLU, Sigmoid, Softmax, Tanh
from fastconv.nn.adaptive import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
)
from fastconv.nn.augment import RandomAffine
from fastconv.nn.conv_transpose import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from fastconv.nn.convolution import Conv1d, Conv2d, Conv3d
from fastconv.nn.dense import Dropout, Flatten, Linear
from fastconv.nn.layer import Layer, Sequential
from fastconv.nn.losses import MSE, NLL, CrossEntropy, Loss
from fastconv.nn.normalization import BatchNorm2d
from fastconv.nn.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from fastconv.nn.pooling import (
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    LPPool1d,
    LPPool2d,
    LPPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from fastconv.nn.saving import load, save
from fastconv.nn.schedules import CosineAnnealingLR, OneCycleLR, Schedule
from fastconv.nn.train import History, fit

__all__ = [
    "MSE",
    "NLL",
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "CosineAnnealingLR",
    "CrossEntropy",
    "Dropout",
    "Flatten",
    "History",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "Layer",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "Loss",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "OneCycleLR",
    "Optimizer",
    "RMSprop",
    "RandomAffine",
    "ReLU",
    "Schedule",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "fit",
    "load",
    "save",
]
