"""Layers without an integer form between convolutions: refused by name, or spliced in as float."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import builders
import island_models
import rewriter
from rewriter.errors import ExportError

KERASES = pytest.mark.parametrize("name", builders.KERASES)


def prepared(keras: Any, build: Any, seed: int = 0) -> tuple[Any, np.ndarray]:
    """A calibrated network around what ``build`` makes, and data for it."""
    builders.fresh(keras, seed)
    data = builders.normal(8, *island_models.SIZE, 3, seed=seed)
    model = builders.randomise_all(island_models.network(keras, build), seed)
    builders.fit_statistics(model, data)
    return builders.calibrated(model, data), data


def check(qat: Any, data: Any, path: Any, **options: Any) -> Any:
    """Export, and compare file and twin operator by operator; the verification."""
    report = rewriter.export_tflite(qat, path, allow_float=True, **options)
    assert report.float_tensors
    found = rewriter.verify(qat, path, data, progress=False)
    comparison = found.comparison
    assert not comparison.differences and not comparison.skipped and not comparison.missing
    for tensor in comparison.operator_by_operator:
        if tensor.unit == "step":
            assert tensor.identical == 1.0, tensor
        else:
            assert tensor.maximum <= 1e-5, tensor
    assert found.parts_at is None, found
    return found


@KERASES
@pytest.mark.parametrize("case", island_models.CASES)
def test_a_file_with_islands_is_its_twin(name, case, tmp_path):
    keras = builders.keras_of(name)
    build, layers = island_models.CASES[case]
    qat, data = prepared(keras, build)
    with pytest.raises(ExportError, match="has no integer form") as refused:
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())
    for layer in layers:
        assert layer in str(refused.value)
    found = check(qat, data, tmp_path / "m.tflite")
    assert {t.layer for t in found.comparison.operator_by_operator if t.unit != "step"}
