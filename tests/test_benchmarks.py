"""What the benchmarks compute from their measurements, and how they write it; no timings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rewriter
from benchmarks import (
    accuracy,
    accuracy_models,
    convert,
    coverage_table,
    lifting_table,
    meter,
    peers,
    report,
    stages,
    tflite,
    usual_converter,
)
from checks import KERASES, call, randomise, samples
from rewriter.checking import interpreter, reading
from rewriter.litert import writer
from rewriter.lowering.lower import lower


def test_difference_of_operator_counts() -> None:
    ours, theirs = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 2}, {"CONV_2D": 3, "MUL": 2, "ADD": 1}
    gaps = tflite.difference(theirs, ours)
    assert gaps == {"ADD": 1, "DEPTHWISE_CONV_2D": -2, "MUL": 2}
    assert tflite.spelled(gaps) == "+1 ADD, -2 DEPTHWISE_CONV_2D, +2 MUL"
    assert tflite.spelled(tflite.difference(ours, ours)) == "same"


def _row(operators: int, ratio: float, low: float = 1.0) -> dict[str, Any]:
    timing = {"ratio": ratio, "low": low}
    return {"operators": {"CONV_2D": operators}, "threads": {1: timing}}


@pytest.mark.parametrize(
    ("folded", "ratio", "low", "met"),
    [
        (5, 1.02, 1.01, "yes"),
        (6, 1.03, 0.9, "yes"),
        (4, 0.9, 0.8, "no"),
        (5, 1.04, 1.01, "no"),
        (5, 1.04, 0.99, "unclear"),
        (4, 1.04, 0.99, "no"),
    ],
)
def test_verdict(folded: int, ratio: float, low: float, met: str) -> None:
    rows = {
        peers.OURS: _row(5, 1.0),
        peers.FOLDED: _row(folded, 0.8),
        "TF PTQ": _row(9, ratio, low),
        peers.FLOAT: _row(5, 3.0),  # is no int8 peer
    }
    found = tflite.verdict(rows)
    assert found["met"] == met
    assert found["more_operators"] == 5 - folded
    assert (found["latency"], found["peer"]) == (ratio, "TF PTQ")


def test_ratio_is_of_the_rounds() -> None:
    # The machine is ten times slower in the second round; the ratio does not see it.
    assert tflite.ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.1])[0] == pytest.approx(2.0)


def test_everybody_takes_every_place() -> None:
    labels = ["a", "b", "c"]
    orders = [tflite.turns(labels, index) for index in range(6)]
    assert all(sorted(order) == labels for order in orders)
    for place in range(3):
        assert {order[place] for order in orders} == set(labels)


def test_a_section_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    for title, text in (("One", "first"), ("Two (b)", "second\n\n### below\n"), ("One", "third")):
        report.replace_section(path, title, text)
    content = path.read_text()
    assert content.startswith("# Results of the benchmarks\n\nMachine: ")
    assert content.count("Versions: ") == 1
    assert content.endswith("\n\n## One\n\nthird\n\n## Two (b)\n\nsecond\n\n### below\n")


def test_table_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWRITER_KERNELS", raising=False)
    assert report.table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"
    words = ["elsewhere/tflite.py", "--files", "kept", "--rounds", "5", "--json", "rows"]
    assert report.command(words) == "python benchmarks/tflite.py --rounds 5"
    monkeypatch.setenv("REWRITER_KERNELS", "plain")
    assert report.command(words) == "REWRITER_KERNELS=plain python benchmarks/tflite.py --rounds 5"


def test_meter_reads_the_clock_and_the_peak() -> None:
    def allocate() -> int:
        return int(np.ones(16 * 2**20, np.uint8).sum())

    reading, result = meter.read(allocate)
    assert result == 16 * 2**20
    assert reading.wall > 0 and 8 < reading.peak < 200


def _reading(cpu: float) -> dict[str, float]:
    return {"wall": 2 * cpu, "cpu": cpu, "peak": 10.0}


def _measured(blocks: int) -> dict[str, Any]:
    sample = {"calibrate wall": 0.3, "predict wall": 0.2, "calibrate cpu": 0.2, "predict cpu": 0.1}
    return {
        "keras": "keras",
        "name": "chain",
        "blocks": blocks,
        "layers": 3 * blocks,
        **{stage: _reading(0.01 * blocks) for stage in stages.STAGES},
        "TFMOT": "no Keras 3",
        "per sample": sample,
        "side": 0,
        "operators": blocks,
        "other operators": {"ADD": 1},
        "usual converter": {"wall": 0.2 * blocks, "cpu": 0.1 * blocks, "peak": 50.0},
        "added memory": {"export": 2.0, "usual converter": 50.0},
    }


def test_ratios_and_growth_of_a_conversion() -> None:
    rows = [_measured(blocks) for blocks in (10, 20, 40)]
    found = convert.ratios(rows[0])
    assert found["rewrite / clone"] == pytest.approx(1.0)
    assert found["TFMOT / clone"] is None
    assert found["calibrate / predict"] == pytest.approx(1.5)
    assert found["calibrate / predict, CPU"] == pytest.approx(2.0)
    assert found["seconds"] == pytest.approx(0.1)
    assert found["memory"] == pytest.approx(0.04)
    grown = {line[0]: line[1:] for line in convert.growth(rows)}
    assert grown["export"] == ["10.00", "1.000", "1.00, 1.00"]
    assert "TFMOT" not in grown
    text = convert.rendered(rows)
    assert "| chain of 40 | 120 |" in text
    assert "| chain of 40 | 40 | +1 ADD | 0.80 | 8.00 | 1/10.0 | 2 | 50 | 1/25.0 |" in text


@pytest.mark.parametrize("flavour", KERASES)
def test_the_folded_peer_is_the_model(flavour: str) -> None:
    k = KERASES[flavour]
    inputs = k.Input((8, 8, 3))
    x = k.layers.BatchNormalization()(k.layers.Conv2D(4, 3, use_bias=False)(inputs))
    x = k.layers.BatchNormalization(scale=False)(k.layers.DepthwiseConv2D(3)(k.layers.ReLU()(x)))
    x = k.layers.Conv2DTranspose(5, 2, strides=2)(k.layers.BatchNormalization()(k.layers.ReLU()(x)))
    x = k.layers.Flatten()(k.layers.ReLU()(k.layers.BatchNormalization(center=False)(x)))
    model = k.Model(inputs, k.layers.BatchNormalization()(k.layers.Dense(3)(x)))
    rng = np.random.default_rng(0)
    data = samples(model, rng)
    randomise(model, rng, data)
    folded = peers.folded(model)
    plan = rewriter.plan(model)
    kept = [x for x in folded.layers if isinstance(x, k.layers.BatchNormalization)]
    assert len(kept) == plan.count("standalone") == 1
    (expected,), (actual,) = call(model, data), call(folded, data)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_files_of_the_peers() -> None:
    k = KERASES["tf_keras"]
    inputs = k.Input((8, 8, 3))
    x = k.layers.ReLU()(k.layers.BatchNormalization()(k.layers.Conv2D(4, 3)(inputs)))
    model = k.Model(inputs, k.layers.BatchNormalization()(k.layers.AveragePooling2D()(x)))
    rng = np.random.default_rng(0)
    (data,) = samples(model, rng)
    randomise(model, rng, [data])
    ours, folded, floating = (
        peers.FILES[label](model, data) for label in (peers.OURS, peers.FOLDED, peers.FLOAT)
    )
    gaps = tflite.difference(tflite.operators(folded), tflite.operators(ours))
    assert gaps == {"ADD": 1, "DEPTHWISE_CONV_2D": -1, "MUL": 1}
    for content, dtype in ((ours, "INT8"), (folded, "INT8"), (floating, "FLOAT32")):
        file = reading.read(content)
        assert [file.tensors[i].dtype for i in (*file.inputs, *file.outputs)] == [dtype] * 2
    times = tflite.latencies({peers.OURS: ours, peers.FOLDED: folded}, 1, 3)
    assert all(len(values) == 3 and min(values) > 0 for values in times.values())


@pytest.mark.slow
def test_every_stage_of_a_conversion_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "setrecursionlimit", lambda limit: None)  # other tests rely on it
    found = dict(stages.stages(stages.Case("keras", "chain", 3), 2, tmp_path))
    assert set(stages.STAGES) <= set(found)
    assert 0 < found["export"].wall < found["usual converter"].wall
    assert found["other operators"] == {} and found["operators"] == 3


def test_the_usual_converter_gets_the_same_operators() -> None:
    k = KERASES["keras"]
    inputs = k.Input((16, 16, 3))
    x = k.layers.ReLU()(k.layers.BatchNormalization()(k.layers.Conv2D(8, 3)(inputs)))
    y = k.layers.ReLU()(k.layers.BatchNormalization()(k.layers.DepthwiseConv2D(3)(x)))
    gate = k.layers.Reshape((1, 1, 8))(k.layers.GlobalAveragePooling2D()(y))
    gate = k.layers.Conv2D(8, 1, activation="sigmoid")(gate)
    y = k.layers.Add()([k.layers.Multiply()([y, gate]), k.layers.Conv2D(8, 1)(y)])
    y = k.layers.MaxPooling2D(2)(k.layers.ZeroPadding2D(1)(y))
    model = k.Model(inputs, k.layers.Dense(4, activation="softmax")(k.layers.Flatten()(y)))
    rng = np.random.default_rng(0)
    (data,) = samples(model, rng)
    randomise(model, rng, [data])
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, data, progress=False)
    program = lower(qat)
    theirs = usual_converter.convert(usual_converter.converter(program))
    counted = tflite.operators(theirs)
    assert tflite.difference(counted, tflite.operators(writer.write(program))).keys() <= {"RESHAPE"}
    assert reading.census(theirs).integer_only
    real = interpreter.run(theirs, [data])[0].astype(np.int32)
    ours = interpreter.run(writer.write(program), [data])[0].astype(np.int32)
    assert np.mean(np.abs(real - ours) <= 2) > 0.9


def test_added_memory_of_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "setrecursionlimit", lambda limit: None)
    case = stages.Case("keras", "chain", 3)
    assert all(stages.added_memory(case, s) >= 0 for s in ("export", "usual converter"))


@pytest.mark.parametrize(
    ("changed", "met"),
    [
        ({}, True),
        ({"difference": 1.1e-5}, False),
        ({"plan": False}, False),
        ({"weights": False}, False),
        ({"floats": 1}, False),
        ({"kept": 3}, True),  # layers of their own that become integers
    ],
)
def test_lifted_models_are_counted(changed: dict[str, Any], met: bool) -> None:
    same = {"difference": 9e-6, "plan": True, "weights": True, "floats": 0, "kept": 0}
    found = {**same, "load": _reading(2.0), "operators": 9, "layers": 3, **changed}
    row = {"kind": "lift", "keras": "keras", "name": "Net", "norms": 2, "fused": 1}
    rows = [
        {**row, "keras load": _reading(4.0), "writers": {"export": found}},
        {**row, "name": "Other", "keras load fails": "why", "writers": {"export": found}},
    ]
    assert lifting_table.met(found) is met
    text = coverage_table.render(rows)
    assert f"2 architectures, 2 files: {2 * met} with" in text and "at most 0.50" in text
    assert text.startswith("# Lifted") and "| fails |" in text


def test_cells_of_seeds_and_of_what_was_kept_of_them() -> None:
    seeds = [{"accuracy": 90.0, "model": 91.0, "bytes": 2048}, {"accuracy": 92.0, "bytes": 2048}]
    assert accuracy._cells(seeds) == ["91.00 ± 1.00", "91.00", "", "2"]
    kept = {"seeds": 3, "accuracy": 90.87, "error": 0.09, "as float": 98.7}
    assert accuracy._cells([kept]) == ["90.87 ± 0.09", "", "98.70", ""]
    assert accuracy._cells([]) == ["", "", "", ""]


def test_batches_are_shifted_and_flipped_images() -> None:
    """Of each image a window over its zero border of 4 pixels, mirrored or not; each once."""
    x = np.random.default_rng(0).integers(1, 256, (128, 6, 6, 1)).astype(np.uint8)
    batches = accuracy_models._Batches(x, np.arange(128), epoch=3, flips=True)
    assert len(batches) == 1
    found, numbers = batches[0]
    assert sorted(numbers) == list(range(128))
    assert found.dtype == np.float32 and found.shape == (128, 6, 6, 1)
    flipped = 0
    for image, number in zip(found, numbers, strict=True):
        whole = np.pad(x[number, :, :, 0], 4)
        windows = np.lib.stride_tricks.sliding_window_view(whole, (6, 6)).reshape(-1, 6, 6)
        pixels = np.rint((image[..., 0] + 1) * 127.5)
        plain = (windows == pixels).all((1, 2)).any()
        assert plain or (windows == pixels[:, ::-1]).all((1, 2)).any()
        flipped += not plain
    assert 40 < flipped < 90
    again, _ = accuracy_models._Batches(x, np.arange(128), epoch=3, flips=True)[0]
    np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize(
    ("name", "least"), [("mnist", 98.5), ("resnet20", 80.0), ("mobilenetv2", 75.0)]
)
def test_trained_networks(name: str, least: float, shared: Path) -> None:
    """The weights beside the benchmark are those of a network that has learned."""
    pixels, labels = (values[:1000] for values in accuracy_models.images(name, "test"))
    model = accuracy_models.trained(name)
    decided = model.predict(accuracy_models.scaled(pixels), verbose=0).argmax(-1)
    assert 100 * np.mean(decided == labels) > least
