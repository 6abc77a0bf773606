"""The twin is traced as it is: AutoGraph would convert its layers and all that they call."""

from __future__ import annotations

import sys

import pytest
import tensorflow as tf

import builders
import residuals
import rewriter
from builders import KERASES, keras_of
from rewriter.litert import integer


@pytest.fixture(params=KERASES)
def keras(request):
    return builders.fresh(keras_of(request.param))


def converted() -> list[str]:
    """The functions on the stack that AutoGraph made."""
    names, frame = [], sys._getframe()
    while frame is not None:
        if "__autograph_generated_file" in frame.f_code.co_filename:
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


def test_nothing_of_the_twin_is_converted(keras, monkeypatch):
    whole, seen = integer.compute, []

    def compute(operator, *values):
        seen.append((tf.executing_eagerly(), converted()))
        return whole(operator, *values)

    monkeypatch.setattr(integer, "compute", compute)
    qat = builders.calibrated(builders.trained_residual(keras), residuals.X)
    twin = rewriter.fold(qat)
    # Keras 3 asks its layers for their shapes only.
    assert all(names == [] for _, names in seen)
    seen.clear()
    twin.predict(residuals.X[:4], verbose=0)
    assert seen and not any(eager for eager, _ in seen)
    # tf_keras has its own function around the model converted.
    assert all(set(names) <= {"tf__predict_function"} for _, names in seen)
