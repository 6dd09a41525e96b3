"""Softmax and cross-entropy of a batch, and the gradient, row by row in float64."""

from __future__ import annotations

from math import exp, log

from fastconv.jit import fields, ints, kernel, reals, record

#: `loss`, in float64, gets the mean; `wrong`, in int64, a label that is no class, or stays as it is.
CROSS_ENTROPY = record("pred labels grad loss wrong rows classes")


@kernel(CROSS_ENTROPY)
def cross_entropy(bits):
    """loss = the mean of -log softmax(pred)[label]; grad = its gradient. One task."""

    def cross_entropy(params, t, tasks):
        p = fields(params, CROSS_ENTROPY)
        pred, grad, labels = reals(p.pred, bits), reals(p.grad, bits), ints(p.labels)
        value = 0.0
        for row in range(p.rows):
            first = row * p.classes
            label = labels[row]
            if label < 0 or label >= p.classes:
                ints(p.wrong)[0] = label
                return
            most = pred[first]
            for c in range(1, p.classes):
                if pred[first + c] > most:
                    most = pred[first + c]
            total = 0.0
            for c in range(p.classes):
                total += exp(float(pred[first + c]) - most)
            # not -log(probability): exact also where that is 0
            value += log(total) - (float(pred[first + label]) - most)
            for c in range(p.classes):
                probability = exp(float(pred[first + c]) - most) / total
                grad[first + c] = (probability - (1.0 if c == label else 0.0)) / p.rows
        reals(p.loss, 64)[0] = value / p.rows

    return cross_entropy
