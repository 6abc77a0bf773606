"""The residual model for tests that have their Keras as a fixture: its data and its ranges.

Pytest knows a fixture by its name in the file of the tests: ``keras = residuals.keras``.
"""

from __future__ import annotations

import numpy as np
import pytest

import builders
import claims
import rewriter
from builders import KERASES, keras_of


@pytest.fixture(params=KERASES)
def keras(request):
    return builders.fresh(keras_of(request.param))


@pytest.fixture
def qat(keras):
    """A rewritten model in phase ``float``."""
    return rewriter.rewrite(builders.trained_residual(keras))


X = builders.residual_data()


def ranges(qat):
    """Every range, by layer, as (low, high)."""
    return {
        f"{i}:{layer.name}": tuple(
            float(np.asarray(layer.range_variables[key])) for key in ("min_var", "max_var")
        )
        for i, layer in enumerate(claims.quantize_layers(qat))
        if layer.range_variables
    }


def is_set(values):
    return all(np.isfinite(pair).all() and pair[0] <= 0 <= pair[1] for pair in values.values())
