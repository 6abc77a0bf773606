"""Steps that compute nothing are not in the file, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewriter
from checks import KERASES, randomise, samples
from rewriter.checking import interpreter, reading
from rewriter.lowering import peephole


def _squeeze(k: Any) -> Any:
    """Squeeze-and-excitation, with means and maxima."""
    y = inputs = k.Input((6, 5, 4))
    for pool in (k.layers.GlobalAveragePooling2D, k.layers.GlobalMaxPooling2D):
        x = k.layers.ReLU()(k.layers.BatchNormalization()(k.layers.Conv2D(4, 3)(y)))
        gate = k.layers.Reshape((1, 1, 4))(pool()(x))
        y = k.layers.Multiply()([x, k.layers.Conv2D(4, 1, activation="sigmoid")(gate)])
    return k.Model(inputs, y)


def _squeeze_read_twice(k: Any) -> Any:
    inputs = k.Input((6, 5, 4))
    pooled = k.layers.GlobalAveragePooling2D()(k.layers.Conv2D(4, 3)(inputs))
    gate = k.layers.Conv2D(4, 1)(k.layers.Reshape((1, 1, 4))(pooled))
    return k.Model(inputs, [gate, k.layers.Dense(3)(pooled)])


def _other_reshape(k: Any) -> Any:
    inputs = k.Input((6, 5, 4))
    x = k.layers.Reshape((2, 2, 1))(k.layers.GlobalAveragePooling2D()(inputs))
    return k.Model(inputs, k.layers.Conv2D(3, 2)(x))


def _rescaled(k: Any) -> Any:
    """Rescaled twice, moved about, and read by kernels of three kinds."""
    inputs = k.Input((6, 8, 4))
    x = k.layers.Rescaling(1 / 4)(k.layers.Rescaling(0.3)(inputs))
    padded = k.layers.MaxPooling2D(2)(k.layers.ZeroPadding2D(1)(x))
    a = k.layers.ReLU()(k.layers.BatchNormalization()(k.layers.Conv2D(5, 3)(padded)))
    b = k.layers.Dense(5)(k.layers.Flatten()(x))
    c = k.layers.BatchNormalization()(k.layers.DepthwiseConv2D(3)(padded))
    return k.Model(inputs, [a, b, c])


def _rescaled_and_added(k: Any) -> Any:
    inputs = k.Input((6, 8, 4))
    x = k.layers.Rescaling(0.3)(inputs)
    return k.Model(inputs, k.layers.Add()([x, k.layers.Conv2D(4, 1)(x)]))


def _rescaled_output(k: Any) -> Any:
    inputs = k.Input((6, 8, 4))
    x = k.layers.Rescaling(0.3)(inputs)
    return k.Model(inputs, [k.layers.Conv2D(4, 1)(x), k.layers.ZeroPadding2D(1)(x)])


def _negative(k: Any) -> Any:
    inputs = k.Input((6, 8, 4))
    return k.Model(inputs, k.layers.Conv2D(4, 1)(k.layers.Rescaling(-0.3)(inputs)))


def _clamped(k: Any) -> Any:
    inputs = k.Input((6, 8, 4))
    x = k.layers.ReLU()(k.layers.Rescaling(0.3)(inputs))
    return k.Model(inputs, k.layers.Conv2D(4, 1)(x))


# build -> the operators that go
CASES: dict[str, tuple[Callable[[Any], Any], dict[str, int]]] = {
    "squeeze": (_squeeze, {"RESHAPE": 2}),
    "squeeze_read_twice": (_squeeze_read_twice, {}),
    "other_reshape": (_other_reshape, {}),
    "rescaled": (_rescaled, {"MUL": 2}),
    "rescaled_and_added": (_rescaled_and_added, {}),
    "rescaled_output": (_rescaled_output, {}),
    "negative": (_negative, {}),
    "clamped": (_clamped, {}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("flavour", KERASES)
def test_same_integers_from_fewer_operators(
    flavour: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, gone = CASES[name]
    model = build(KERASES[flavour])
    rng = np.random.default_rng(0)
    (data,) = samples(model, rng, 24)
    randomise(model, rng, [data])
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, data, progress=False)
    rewriter.export_tflite(qat, tmp_path / "short.tflite")
    found = rewriter.verify(qat, tmp_path / "short.tflite", data, progress=False).comparison
    assert min(a.identical for a in found.operator_by_operator) == 1.0
    assert min(a.identical for a in found.end_to_end) == 1.0
    monkeypatch.setattr(peephole, "simplify", lambda steps, tensors, outputs: (steps, tensors))
    rewriter.export_tflite(qat, tmp_path / "long.tflite")
    short, long = ((tmp_path / f"{part}.tflite").read_bytes() for part in ("short", "long"))
    a, b = (reading.census(content).operators for content in (short, long))
    assert {kind: n - a.get(kind, 0) for kind, n in b.items() if n != a.get(kind, 0)} == gone
    for x, y in zip(interpreter.run(short, [data]), interpreter.run(long, [data]), strict=True):
        assert len(np.unique(y)) > 5  # otherwise equal outputs prove nothing
        np.testing.assert_array_equal(x, y)


def test_a_range_that_does_not_follow_keeps_its_operator(tmp_path: Path) -> None:
    k = KERASES["keras"]
    inputs = k.Input((6, 8, 4))
    model = k.Model(inputs, k.layers.Conv2D(4, 1)(k.layers.Rescaling(0.3, name="scaled")(inputs)))
    (data,) = samples(model, np.random.default_rng(0), 24)
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, data, progress=False)
    assert "MUL" not in rewriter.export_tflite(qat, tmp_path / "model.tflite").ops
    (layer,) = [x for x in qat.layers if "scaled" in x.name and hasattr(x, "range_variables")]
    variables = layer.range_variables
    variables["max_var"].assign(variables["max_var"] * 0.8)
    assert rewriter.export_tflite(qat, tmp_path / "model.tflite").ops["MUL"] == 1
    found = rewriter.verify(qat, tmp_path / "model.tflite", data, progress=False).comparison
    assert min(a.identical for a in found.end_to_end) == 1.0


@pytest.mark.parametrize("flavour", KERASES)
def test_a_normalization_that_was_never_adapted_is_nothing(flavour: str, tmp_path: Path) -> None:
    k = KERASES[flavour]
    inputs = k.Input((6, 8, 4))
    x = k.layers.Normalization(mean=0.0, variance=1.0)(inputs)
    model = k.Model(inputs, k.layers.Conv2D(4, 1)(x))
    (data,) = samples(model, np.random.default_rng(0), 24)
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, data, progress=False)
    assert rewriter.export_tflite(qat, tmp_path / "model.tflite").ops == {"CONV_2D": 1}
