"""The numbers of a report against LiteRT, NumPy, scikit-learn and the original model."""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import html
import importlib.util
import json
import re
import shutil
import subprocess

import markupsafe
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from sklearn.metrics import confusion_matrix

import rewriter
from builders import KERASES, keras_of
from reports import EVIL, HEADINGS, classifier, hostile
from rewriter.checking import interpreter
from rewriter.cli import demo
from rewriter.errors import RewriterError
from rewriter.report import model_explorer, page, report
from rewriter_command import main


@dataclasses.dataclass
class Run:
    model: object
    result: object
    report: object
    text: str
    file: object
    data: object


@pytest.fixture(scope="module", params=KERASES)
def run(request, tmp_path_factory):
    """The whole way, with a report."""
    folder = tmp_path_factory.mktemp("report")
    data, file = demo.digits(), folder / "model.tflite"
    model = classifier(keras_of(request.param))
    result = rewriter.quantize(
        model, data.x_train[:500], data.y_train[:500], output=file,
        test=(data.x_test[:200], data.y_test[:200]), epochs=2, learning_rate=1e-4, progress=False,
    )  # fmt: skip
    made = rewriter.write_report(result, folder / "report.html")
    text = (folder / "report.html").read_text()
    return Run(model, result, made, text, file, data)


def test_all_sections_are_there(run):
    assert re.findall(r"<h2 id=\"\w+\">\d+\. (.*?)</h2>", run.text) == HEADINGS
    json.dumps(run.report.to_dict(), allow_nan=False)
    assert set(run.report.absent) <= {"parting"}


def test_names_are_text(run):
    """No layer's name becomes markup, and no script runs or could."""
    text = page.html(hostile(run.report))
    assert "<script" not in text and "default-src 'none'" in text
    assert text.count(str(markupsafe.escape(EVIL + "first"))) > 5
    tags = re.findall(r"<(\w+)", text)
    assert len(tags) == len(re.findall(r"<(\w+)", run.text))


def test_nothing_is_loaded(run):
    """Addresses stand in the namespaces of SVG only."""
    assert set(re.findall(r"https?://[\w./]+", run.text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", run.text)


def test_signal_to_noise_is_that_of_the_verification(run):
    expected = {t.name: t.snr_db for t in run.result.verification.training.tensors}
    found = {row.name: row.snr_db for row in run.report.tensors if row.snr_db is not None}
    assert found == expected
    known = [row.snr_db for row in run.report.tensors if row.snr_db is not None]
    assert known == sorted(known) and f"{known[0]:.1f} dB" in run.text
    assert {n.name: n.snr_db for n in run.report.nodes if n.snr_db is not None} == expected


def test_histograms_are_of_the_original_model(run, tmp_path):
    """Not fine-tuned, the float values are the original model's: counted by NumPy."""
    data, file = run.data, tmp_path / "m.tflite"
    qat = rewriter.rewrite(run.model)
    rewriter.calibrate(qat, data.x_train[:8], progress=False)  # few: so that some are clipped
    rewriter.export_tflite(qat, file)
    verified = rewriter.verify(qat, file, data.x_test[:100], progress=False)
    made = report.make(verified, None, measure_times=False)
    inner = type(run.model)(run.model.inputs, run.model.get_layer("act").output)
    values = inner.predict(data.x_test[:100], verbose=0).astype(np.float64)
    (row,) = [
        row for row in made.tensors if row.high and abs(row.values.maximum - values.max()) < 1e-5
    ]
    high, half = row.scale * (127 - row.zero_point), row.scale / 2
    assert row.high == pytest.approx(high) and row.values.samples == 100
    assert row.values.clipped == pytest.approx(np.mean(values > high + half), abs=1e-6)
    assert row.values.above > 0 == row.values.below
    assert row.values.zeros == pytest.approx(np.mean(values == 0), abs=1e-6)
    counts, _ = np.histogram(values, len(row.values.counts), (row.values.first, row.values.last))
    assert sum(row.values.counts) == values.size
    # Values within a fine bin of an edge may be on its other side.
    np.testing.assert_allclose(
        np.cumsum(row.values.counts), np.cumsum(counts), atol=0.005 * values.size
    )
    assert made.operators.whole_microseconds is None and "Times were not" in page.html(made)


def test_kernels_are_those_of_the_file(run):
    lite = Interpreter(str(run.file))
    details = {d["index"]: d for d in lite.get_tensor_details()}
    kernels = [
        (op["op_name"], details[op["inputs"][1]]["quantization_parameters"]["scales"])
        for op in lite._get_ops_details()
        if op["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    ]
    assert len(run.report.kernels_of_layers) == len(kernels) == 3
    for row, (kind, scales) in zip(run.report.kernels_of_layers, kernels, strict=True):
        assert row.kind == kind and row.channels == len(scales)
        np.testing.assert_array_equal(np.float32(row.scales), scales)
        assert row.spread == pytest.approx(scales.max() / scales.min(), rel=1e-6)


def test_a_dead_channel_is_found(run):
    qat = rewriter.rewrite(run.model)
    rewriter.calibrate(qat, run.data.x_train[:32], progress=False)
    from rewriter.lowering.lower import lower
    from rewriter.report import kernels

    assert [row.dead for row in kernels.rows(lower(qat))] == [(5,), (), ()]


def test_operators_are_those_of_the_file(run):
    details = Interpreter(str(run.file))._get_ops_details()
    counts = collections.Counter(op["op_name"] for op in details if op["op_name"] != "DELEGATE")
    assert {k.kind: k.count for k in run.report.operators.kinds} == counts
    content = run.file.read_bytes()
    rows = run.report.operators.rows
    assert sum(row.bytes for row in rows) + run.report.operators.other_bytes == len(content)
    # 3 x 3 x 8 of int8 and biases of int32 for each channel.
    assert [row.bytes for row in rows if "CONV" in row.kind] == [72 + 32, 72 + 32]
    assert all(row.microseconds > 0 for row in rows)


def test_scores_and_classes(run):
    (outputs,) = interpreter.run(run.file.read_bytes(), [run.data.x_test[:200]])
    labels = run.data.y_test[:200]
    expected = confusion_matrix(labels, outputs.argmax(-1), labels=range(10))
    np.testing.assert_array_equal(run.report.confusion.counts, expected)
    by_name = {row.name: row for row in run.report.summary}
    original = run.model.predict(run.data.x_test[:200], verbose=0).argmax(-1)
    assert by_name["float model"].score == np.mean(original == labels)
    assert by_name["file"].score == np.trace(expected) / 200 == run.report.confusion.accuracy
    twin = rewriter.fold(run.result.model).predict(run.data.x_test[:200], verbose=0).argmax(-1)
    assert by_name["twin"].score == np.mean(twin == labels) and by_name["twin"].samples == 200
    assert by_name["file"].bytes == run.file.stat().st_size
    assert by_name["float model"].bytes == 4 * run.model.count_params()
    assert by_name["file"].shown in run.text and f"{by_name['file'].bytes:,}" in run.text
    assert [row.number for row in run.report.epochs] == [0, 1, 2]
    assert run.report.epochs[0].loss is None and run.report.epochs[2].loss > 0


def test_the_lines_of_python_run_the_file(run):
    image = run.data.x_test[:1]
    space = {"inputs": [image]}
    exec(run.report.contract.python, space)
    (stored,) = interpreter.run(run.file.read_bytes(), [image])
    port = run.report.contract.outputs[0]
    expected = port.scale * (stored.astype(np.float64) - port.zero_point)
    np.testing.assert_allclose(space["outputs"][0], expected, rtol=1e-6)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_lines_of_c_fill_and_read(run, tmp_path):
    (tmp_path / "io.c").write_text(run.report.contract.c)
    flags = ["-shared", "-fPIC", "-std=c99", "-Wall", "-Werror", "-O0"]
    subprocess.run(["cc", *flags, "io.c", "-o", "io.so", "-lm"], cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "io.so"))
    lite = Interpreter(str(run.file))
    (put,), (get,) = lite.get_input_details(), lite.get_output_details()
    image = run.data.x_test[3].astype(np.float32)
    scale, zero_point = put["quantization"]
    expected = np.clip(np.rint(image.astype(np.float64) / scale) + zero_point, -128, 127)
    stored = np.empty(64, np.int8)
    library.fill_input_0(image.ctypes, stored.ctypes)
    np.testing.assert_array_equal(stored.reshape(image.shape), expected)
    levels = np.rint(image * 16).astype(np.uint8)  # of the digits: 0 to 16
    library.fill_input_0_from_pixels(levels.ctypes, stored.ctypes)
    np.testing.assert_array_equal(stored.reshape(image.shape), expected)
    scale, zero_point = get["quantization"]
    raw, real = np.arange(-128, -118, dtype=np.int8), np.empty(10, np.float32)
    library.read_output_0(raw.ctypes, real.ctypes)
    np.testing.assert_allclose(real, scale * (raw.astype(np.float64) - zero_point), rtol=1e-6)


def test_of_a_verification(run, tmp_path):
    labels = run.data.y_test[:60]
    verified = rewriter.verify(run.result.model, run.file, run.data.x_test[:60], progress=False)
    made = rewriter.write_report(verified, tmp_path / "r.html", labels=labels, measure_times=False)
    (outputs,) = interpreter.run(run.file.read_bytes(), [run.data.x_test[:60]])
    expected = confusion_matrix(labels, outputs.argmax(-1), labels=range(10))
    np.testing.assert_array_equal(made.confusion.counts, expected)
    assert {"tuning", "plan"} <= set(made.absent)
    text = (tmp_path / "r.html").read_text()
    assert re.findall(r"<h2 id=\"\w+\">\d+\. (.*?)</h2>", text) == HEADINGS
    assert all(html.escape(sentence) in text for sentence in made.absent.values())
    with pytest.raises(RewriterError, match=r"labels must be classes from 0 to 9.*\(59,\)"):
        rewriter.write_report(verified, tmp_path / "r.html", labels=labels[1:])
    with pytest.raises(RewriterError, match="Take one that verify returned"):
        rewriter.write_report(dataclasses.replace(verified, evidence=None), tmp_path / "r.html")


def test_all_four_are_scored_by_the_metric(tmp_path):
    """The twin, too, whose classes are known from the verification."""
    model, data = rewriter.load_model(demo.MODEL), demo.digits()
    x, y = data.x_train[:60], data.y_train[:60]

    def surprise_loss(labels, out):
        return 1 - out[np.arange(len(out)), labels]

    result = rewriter.quantize(
        model, x, y, output=tmp_path / "m.tflite", metric=surprise_loss, progress=False
    )
    report = rewriter.write_report(result, tmp_path / "r.html", measure_times=False)
    scores = {row.name: row.score for row in report.summary}
    outputs = rewriter.fold(result.model).predict(result.tested.inputs[0], verbose=0)
    wanted = -np.mean(surprise_loss(result.tested.labels.reshape(-1), outputs))
    assert scores["twin"] == pytest.approx(wanted, rel=1e-5)
    assert scores["twin"] == pytest.approx(scores["file"], abs=0.01)


def test_without_labels(tmp_path):
    data = demo.digits()
    result = rewriter.quantize(
        classifier(keras_of("keras")), data.x_train[:100], output=tmp_path / "m.tflite",
        epochs=1, progress=False,
    )  # fmt: skip
    made = report.make(result, None, measure_times=False)
    assert {row.score for row in made.summary} == {None} and made.confusion is None
    text = page.html(made)
    assert "no labels were given" in text and html.escape(made.absent["confusion"]) in text
    assert "dB to the trained model" in text  # the scores of the epochs
    with pytest.raises(RewriterError, match="has its labels"):
        rewriter.write_report(result, tmp_path / "r.html", labels=data.y_train[:100])


def test_what_parts_is_told(run, tmp_path):
    """A file of which one constant was changed."""
    content = bytearray(run.file.read_bytes())
    lite = Interpreter(str(run.file))
    lite.allocate_tensors()
    kernel = next(d for d in lite.get_tensor_details() if tuple(d["shape"]) == (8, 3, 3, 1))
    raw = lite.get_tensor(kernel["index"]).tobytes()
    place = bytes(content).index(raw)
    content[place] = (content[place] + 60) % 128
    (tmp_path / "other.tflite").write_bytes(bytes(content))
    verified = rewriter.verify(
        run.result.model, tmp_path / "other.tflite", run.data.x_test[:20], progress=False
    )
    made = report.make(verified, None, measure_times=False)
    assert any("the kernel or its scales differ" in text for text in made.findings)
    assert made.parting[0].identical == min(
        a.identical for a in verified.comparison.operator_by_operator
    )
    text = page.html(made)
    assert f"{100 * made.parting[0].identical:.4f} %" in text and "kernel or its scales" in text


def test_the_overlay_names_the_tensors_of_the_file(run, tmp_path):
    data = rewriter.write_model_explorer(run.result.verification, tmp_path / "o.json")
    assert json.loads((tmp_path / "o.json").read_text()) == data
    names = {d["name"] for d in Interpreter(str(run.file)).get_tensor_details()}
    assert len(data["results"]) > 4 and set(data["results"]) <= names
    expected = {t.snr_db for t in run.result.verification.training.tensors}
    found = {each["value"] for each in data["results"].values()}
    assert found == {model_explorer.EQUAL_DB if np.isinf(v) else round(v, 2) for v in expected}


def test_a_missing_extra_is_one_error_before_the_work(monkeypatch, tmp_path, capsys):
    """Before the model is even read: it is not there."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    command = ["quantize", "none.keras", "--data", "none.npz", "-o", f"{tmp_path}/m.tflite"]
    assert main([*command, "--report", f"{tmp_path}/r.html"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs matplotlib" in said and "pip install 'rewriter[report]'" in said


@pytest.mark.parametrize("option, name", [("--report", "r.html"), ("--model-explorer", "r.json")])
def test_another_file_is_not_replaced(option, name, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    command = ["verify", "none.keras", "none.tflite", "--data", "none.npz"]
    assert main([*command, option, f"{tmp_path}/{name}"]) == 1
    assert "is not replaced" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


def test_summaries_for_tensorboard(run, tmp_path):
    rewriter.write_tensorboard(run.result, tmp_path / "logs")
    (file,) = (tmp_path / "logs").iterdir()
    found = collections.defaultdict(list)
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            found[value.tag].append((event.step, tf.make_ndarray(value.tensor)))
    assert [step for step, _ in found["epoch/score"]] == [0, 1, 2]
    np.testing.assert_allclose([v for _, v in found["epoch/score"]], run.result.epochs, rtol=1e-6)
    assert [step for step, _ in found["epoch/loss"]] == [1, 2]
    expected = [t.snr_db for t in run.result.verification.training.tensors]
    for (_, value), snr in zip(found["signal_to_noise_db"], expected, strict=True):
        assert value == pytest.approx(200.0 if np.isinf(snr) else snr, rel=1e-6)
    assert found["score/file"][0][1] == pytest.approx(run.result.scores["file"])
    (tmp_path / "file").write_text("")
    with pytest.raises(RewriterError, match="go into a folder"):
        rewriter.write_tensorboard(run.result, tmp_path / "file")
