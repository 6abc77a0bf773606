"""Integer-only files of one architecture of every family, against their twins.

Each family is exported from one of the two Kerases, in turn; with ``REWRITER_WIDE=1`` in the
environment from both. ``benchmarks/coverage.py`` does all at larger inputs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import keras
import pytest
import tf_keras

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import architectures, coverage_measures

KERASES = {"tf_keras": tf_keras, "keras": keras}
# A grouped convolution with squeeze-and-excitation; hard swish; concatenations and averages.
BOTH = ("regnet_y", "mobilenet_v3")


def _cases() -> list[Any]:
    cases = []
    for index, (family, members) in enumerate(architectures.FAMILIES.items()):
        found = [k for k, library in KERASES.items() if hasattr(library.applications, members[0])]
        if family not in BOTH and os.environ.get("REWRITER_WIDE", "0") == "0":
            found = [found[index % len(found)]]
        cases += [pytest.param(flavour, members[0]) for flavour in found]
    return cases


@pytest.mark.parametrize(("flavour", "name"), _cases())
def test_the_file_is_the_twin(flavour: str, name: str) -> None:
    library = KERASES[flavour]
    library.backend.clear_session()
    found = coverage_measures.measure_export(library, name, smallest=True, samples=1)
    assert "refusal" not in found, found["refusal"]
    assert found["float_tensors"] == 0 and not found["differences"] and not found["skipped"]
    assert found["worst_identical"] >= 0.999
    assert found["worst_within_one"] == 1.0
