"""Runs that were killed, runs that go on, and how much memory many samples take."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import builders
import rewriter
from builders import keras_of
from rewriter.cli import demo
from rewriter.errors import RewriterError
from rewriter.workflow import fine_tuning

START = """
import resource, sys, rewriter_command
code = rewriter_command.main()
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START, *map(str, arguments)]
    paths = os.pathsep.join([str(Path(rewriter.__file__).parents[1]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(
    "other",
    [{"learning_rate": 1e-3}, {"recipe": "w4a8-small"}, {"labels": 1}, {"model": 1}],
    ids=str,
)
def test_another_run_is_not_gone_on_from(other, tmp_path, monkeypatch):
    data = demo.digits()
    x, y = data.x_train[:60], data.y_train[:60]
    model = rewriter.load_model(demo.MODEL)
    options = {"output": tmp_path / "m.tflite", "epochs": 2, "progress": False}
    options |= {"resume": tmp_path / "work"}
    original = fine_tuning.Progress.keep

    def killed(self, model, epochs, score):
        original(self, model, epochs, score)
        raise OSError(5, "the disk is gone", "disk")

    with monkeypatch.context() as patch:
        patch.setattr(fine_tuning.Progress, "keep", killed)
        with pytest.raises(OSError, match="the disk"):
            rewriter.quantize(model, x, y, **options)
    if "labels" in other:
        y, other = (y + 1) % 10, {}
    if "model" in other:
        model.layers[1].set_weights([1.01 * w for w in model.layers[1].get_weights()])
        other = {}
    with pytest.raises(RewriterError, match="epochs of another run"):
        rewriter.quantize(model, x, y, **options, **other)
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """The old output stays whole until the new one is there; what was trained is gone on from."""
    data = demo.digits()
    np.savez(tmp_path / "train.npz", x=data.x_train[:300], y=data.y_train[:300])
    output, work = tmp_path / "m.tflite", tmp_path / "work"
    arguments = ["quantize", demo.MODEL, "--data", tmp_path / "train.npz", "--labels", "y"]
    arguments += ["--epochs", "4", "--resume", work, "-o", output]
    old = b"\x1c\0\0\0TFL3, the old one"
    output.write_bytes(old)
    for epochs in (0, 2):  # after this epoch, and a little later
        run = started(*arguments)
        state = work / "state.json"
        limit = time.monotonic() + 400
        while not state.exists() or json.loads(state.read_text())["epochs"] < epochs:
            assert run.poll() is None and time.monotonic() < limit, run.communicate()
            time.sleep(0.05)
        time.sleep(0.3 * epochs)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        assert output.read_bytes() == old
    run = started(*arguments)
    said, errors = run.communicate(timeout=500)
    assert run.returncode == 0, errors
    assert "going on after epoch" in said and "epoch 1 of 4" not in said
    assert (
        output.read_bytes()[4:8] == b"TFL3" and output.stat().st_size > 5000 and not work.exists()
    )
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    keras = builders.fresh(keras_of("keras"))
    layers = keras.layers
    x = image = keras.Input((96, 96, 3))
    x = layers.Conv2D(8, 3, strides=4)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(2, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    keras.Model(image, x).save(tmp_path / "m.keras")
    peaks = []
    for count in (1000, 6000):
        rng = np.random.default_rng(0)
        pixels = [rng.integers(0, 256, (12, 12, 3), np.uint8) for _ in range(8)]
        for number in range(count):
            folder = tmp_path / str(count) / str(number % 2)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[number % 8]).save(folder / f"{number}.png")
        arguments = ["quantize", tmp_path / "m.keras", "--data", tmp_path / str(count)]
        arguments += ["--labels", "folder", "--scale", "1/255", "--epochs", "1"]
        run = started(*arguments, "-o", tmp_path / "m.tflite")
        _, errors = run.communicate(timeout=500)
        assert run.returncode == 0, errors
        peaks.append(int(errors.split("peak ")[1].split()[0]) / 1024)
    # 5000 images of 96 x 96 x 3 float32 are 553 MB.
    assert peaks[1] < peaks[0] + 100, f"{peaks} MB"
