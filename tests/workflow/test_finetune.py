"""``finetune``: a calibrated model is trained, and the best epoch of the file is kept."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

import commands
import rewriter
from rewriter.checking import interpreter
from rewriter.cli import demo
from rewriter.errors import RewriterError, RewriterWarning


@pytest.fixture(scope="module")
def data():
    return demo.digits()


def coarse(data):
    """The demo's model with 4-bit kernels, calibrated: there is something to win back."""
    qat = rewriter.rewrite(rewriter.load_model(demo.MODEL), "w4a8-small")
    return rewriter.calibrate(qat, data.x_train[:256], progress=False)


def accuracy(qat, data, path):
    rewriter.export_tflite(qat, path)
    (outputs,) = interpreter.run(path.read_bytes(), [data.x_test])
    return np.mean(outputs.argmax(-1) == data.y_test)


def test_labels(data, tmp_path):
    qat = coarse(data)
    before = accuracy(qat, data, tmp_path / "a.tflite")
    result = rewriter.finetune(qat, data.x_train, data.y_train, epochs=3, learning_rate=1e-3)
    tuning = result.tuning
    assert tuning.task == "classification" and len(tuning.scores) == 4
    assert tuning.losses[3] < tuning.losses[1]
    assert accuracy(result.model, data, tmp_path / "b.tflite") >= before
    best = tuning.scores.index(max(tuning.scores))
    assert f"{100 * max(tuning.scores):.2f} % at epoch {best}, the best" in str(result)


def test_a_teacher(data):
    """Towards another model's outputs, without labels: the file comes nearer to them."""
    teacher = rewriter.load_model(demo.MODEL)
    result = rewriter.finetune(
        coarse(data), data.x_train, teacher=teacher, epochs=3, learning_rate=1e-3
    )
    assert max(result.tuning.scores) > result.tuning.scores[0] + 1  # dB


@pytest.mark.slow
def test_the_command_goes_on(data, tmp_path, capsys, monkeypatch):
    from rewriter.workflow import fine_tuning

    coarse(data).save(tmp_path / "qat.keras")
    np.savez(tmp_path / "train.npz", x=data.x_train[:320], y=data.y_train[:320])
    work, out = tmp_path / "work", tmp_path / "out.keras"
    arguments = ["finetune", tmp_path / "qat.keras", "--data", tmp_path / "train.npz", "--labels"]
    arguments += ["y", "--epochs", "2", "--resume", work, "-o", out]
    original = fine_tuning.Progress.keep

    def killed(self, model, epochs, score):
        original(self, model, epochs, score)
        if epochs == 1:
            raise OSError(5, "the disk is gone", "disk")

    with monkeypatch.context() as patch:
        patch.setattr(fine_tuning.Progress, "keep", killed)
        assert "the disk is gone" in commands.error_of(capsys, *arguments)
    assert work.exists() and not out.exists()
    said = commands.output_of(capsys, *arguments)
    assert "going on after epoch 1" in said and "epoch 2 of 2" in said and str(out) in said
    assert not work.exists()
    assert rewriter.get_phase(rewriter.load_model(out)) == "quantize"
    values = json.loads(commands.output_of(capsys, *arguments, "--json"))
    assert values["task"] == "classification" and len(values["scores"]) == 3


@pytest.mark.parametrize(
    ("count", "labels", "message"),
    [(20, None, "labels, or a teacher"), (5, np.arange(5), "at least 10 samples")],
)
def test_bad_arguments(count, labels, message, data):
    with pytest.raises(RewriterError, match=message):
        rewriter.finetune(coarse(data), data.x_train[:count], labels)


def test_labels_and_a_teacher_exclude_each_other(data):
    with pytest.raises(RewriterError, match="Received: both"):
        rewriter.finetune(
            coarse(data), data.x_train, data.y_train, teacher=rewriter.load_model(demo.MODEL)
        )


def test_classes_that_are_not_trained_on_are_said(tmp_path):
    data = demo.digits()
    some = data.y_train < 4
    model = rewriter.load_model(demo.MODEL)
    options = {"output": tmp_path / "m.tflite", "epochs": 1, "progress": False}
    x, y = data.x_train[some][:40], data.y_train[some][:40]
    with pytest.warns(RewriterWarning, match="4 of the model's 10 classes.*--distill"):
        rewriter.quantize(model, x, y, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RewriterWarning)
        rewriter.quantize(model, x, y, distill=True, **options)
