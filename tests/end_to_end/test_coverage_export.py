"""Integer-only files of one architecture of every family, against their twins.

A part of them a day; with ``REWRITER_WIDE=1`` in the environment all. ``benchmarks/coverage.py``
does it at larger inputs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import pytest
import tf_keras

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import architectures, coverage_measures

KERASES = {"tf_keras": tf_keras, "keras": keras}
ALWAYS = "regnet_y"


def _cases() -> list[Any]:
    return [
        # A grouped convolution with squeeze-and-excitation always.
        pytest.param(k, members[0], marks=[] if family == ALWAYS else [pytest.mark.wide])
        for family, members in architectures.FAMILIES.items()
        for k, library in KERASES.items()
        if hasattr(library.applications, members[0])
    ]


@pytest.mark.parametrize(("flavour", "name"), _cases())
def test_the_file_is_the_twin(flavour: str, name: str) -> None:
    library = KERASES[flavour]
    library.backend.clear_session()
    found = coverage_measures.measure_export(library, name, smallest=True, samples=1)
    assert "refusal" not in found, found["refusal"]
    assert found["float_tensors"] == 0 and not found["differences"] and not found["skipped"]
    assert found["worst_identical"] >= 0.999
    assert found["worst_within_one"] == 1.0
