"""A report of a model as large as people have them: what it weighs, and how long it takes."""

from __future__ import annotations

import time

import numpy as np
import pytest

import builders
import rewriter
from builders import keras_of


@pytest.mark.slow
def test_mobilenet(tmp_path):
    keras = builders.fresh(keras_of("keras"))
    model = keras.applications.MobileNetV2(weights=None, input_shape=(224, 224, 3))
    low = np.random.default_rng(0).normal(size=(4, 28, 28, 3)).astype(np.float32)
    x = low.repeat(8, axis=1).repeat(8, axis=2)
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    verified = rewriter.verify(qat, tmp_path / "m.tflite", x, progress=False)
    # Of this process: others on the same processors, and what is waited for, are not counted.
    start, waiting = time.process_time(), time.monotonic()
    made = rewriter.write_report(verified, tmp_path / "r.html")
    taken = time.process_time() - start
    assert taken < 10, f"{taken:.1f} s of the processor, {time.monotonic() - waiting:.1f} s in all"
    assert (tmp_path / "r.html").stat().st_size < 3_000_000
    assert len(made.operators.rows) > 60 and "graph" not in made.absent
