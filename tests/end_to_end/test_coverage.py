"""A sample of the coverage matrix: one architecture of every family, in both Kerases.

The whole matrix is run by ``benchmarks/coverage.py``; ``benchmarks/COVERAGE.md`` is its result.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import rewriter
from benchmarks import architectures, coverage, coverage_measures, coverage_table, scaling

KERASES = {"tf_keras": tf_keras, "keras": keras}
WITHOUT_NORMS = {"vgg", "convnext"}


def _cases() -> list[Any]:
    return [
        pytest.param(flavour, members[0])
        for members in architectures.FAMILIES.values()
        for flavour, library in KERASES.items()
        if hasattr(library.applications, members[0])
    ]


def _built(flavour: str, name: str) -> tuple[Any, np.ndarray]:
    library = KERASES[flavour]
    library.backend.clear_session()
    model = architectures.build(library, name, smallest=True, classifier_activation=None)
    data = architectures.images(name, 6, 0, smallest=True)
    architectures.set_statistics(model, data)
    return model, data


@pytest.mark.wide
@pytest.mark.parametrize(("flavour", "name"), _cases())
def test_every_normalization_is_taken_and_float_is_the_original(flavour: str, name: str) -> None:
    model, data = _built(flavour, name)
    found = coverage_measures.compare(KERASES[flavour], model, rewriter.rewrite(model), data)
    assert found["signal"] > 0.05  # otherwise equal outputs prove nothing
    assert found["difference"] <= 1e-4
    assert found["left"] == found["refused"] == 0
    assert found["fused"] == found["expected_fused"]
    assert found["fused"] + found["standalone"] == found["batch_norms"]
    assert (found["batch_norms"] == 0) == (architectures.FAMILY[name] in WITHOUT_NORMS)


def _calls(function: Any, model: Any) -> int:
    """How many Python functions run: the same on any machine, however busy."""
    profile = cProfile.Profile()
    profile.runcall(function, model)
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("kind", scaling.KINDS)
@pytest.mark.parametrize("flavour", KERASES)
def test_rewrite_is_linear_in_the_number_of_blocks(flavour: str, kind: str) -> None:
    library = KERASES[flavour]
    library.backend.clear_session()
    rewriter.rewrite(scaling.KINDS[kind](library, 2))
    lengths = (8, 24, 56)
    short, middle, long = (
        _calls(rewriter.rewrite, scaling.KINDS[kind](library, blocks)) for blocks in lengths
    )
    assert (long - middle) / (middle - short) == pytest.approx(2, rel=0.06)


def _lambdas(library: Any, groups: int) -> Any:
    """A grouped convolution by slices: each group a Lambda with a closure."""
    layers = library.layers
    inputs = library.Input((4, 4, groups))
    parts = [
        layers.Conv2D(2, 1)(layers.Lambda(lambda t, i=i: t[..., i : i + 1])(inputs))
        for i in range(groups)
    ]
    return library.Model(inputs, layers.BatchNormalization()(layers.Concatenate()(parts)))


@pytest.mark.parametrize("flavour", KERASES)
def test_rewrite_is_linear_in_the_number_of_lambdas(flavour: str) -> None:
    library = KERASES[flavour]
    library.backend.clear_session()
    rewriter.rewrite(_lambdas(library, 2))
    short, middle, long = (_calls(rewriter.rewrite, _lambdas(library, n)) for n in (6, 18, 42))
    assert (long - middle) / (middle - short) == pytest.approx(2, rel=0.06)


def test_every_architecture_has_a_row() -> None:
    for library in KERASES.values():
        names = architectures.available(library)
        assert len(names) == len(set(names))
        public = {name for name in dir(library.applications) if name[0].isupper()}
        assert set(names) == public
    assert len(architectures.available(tf_keras)) >= 71
    assert len(architectures.available(keras)) >= 40


def test_the_statistics_keep_the_signal_and_are_no_identity() -> None:
    model, data = _built("keras", "MobileNet")
    outputs = np.asarray(model(data, training=False))
    assert architectures.signal(outputs) > 0.05
    norm = next(x for x in model.layers if isinstance(x, keras.layers.BatchNormalization))
    values = {n: np.asarray(getattr(norm, n)) for n in ("gamma", "beta", "moving_mean")}
    assert values["gamma"].min() < 0 < values["gamma"].max()
    assert values["beta"].std() > 0.1 and values["moving_mean"].std() > 0
    assert "call" not in vars(norm)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: Any) -> None:
    results, table = tmp_path / "r.jsonl", tmp_path / "t.md"
    ran = []

    def one(task: tuple, timeout: float) -> dict[str, Any]:
        ran.append(task)
        return {"kind": task[0], "keras": task[1], "name": task[2], "error": "a reason"}

    monkeypatch.setattr(coverage, "_run_one", one)
    command = ["coverage.py", "run", "--results", str(results), "--table", str(table)]
    command += ["--keras", "keras", "--names", "VGG16", "MobileNet", "--jobs", "1"]
    for more in ([], [], ["--retry"]):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        coverage.main()
    assert len(ran) == 4  # two, none, and the two failures again
    assert {json.loads(line)["name"] for line in results.read_text().splitlines()} == {
        "VGG16",
        "MobileNet",
    }
    assert "a reason" in table.read_text()


def test_the_table_says_what_the_results_say(tmp_path: Path) -> None:
    row = {
        "kind": "rewrite", "keras": "tf_keras", "name": "MobileNet", "side": 64,
        "batch_norms": 27, "fused": 26, "standalone": 1, "refused": 0, "left": 0,
        "expected_fused": 26, "difference": 2e-6, "rewrite_seconds": 1.0, "clone_seconds": 2.0,
        "time_ratio": 0.5, "memory_ratio": 1.75,
    }  # fmt: skip
    refused = {"kind": "tfmot", "keras": "tf_keras", "name": "MobileNet", "takes": False}
    text = coverage_table.render([row, refused])
    assert (
        "| MobileNet | 64 | 27 | 26 | 1 | 0 | 0 | 2.0e-06 | 1.0 | 2.0 | 0.50 | 1.75 | refuses |"
        in text
    )
    assert "96.3 %" in text
