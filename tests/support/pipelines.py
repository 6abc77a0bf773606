"""Operations, models and training for the tests of pipelines."""

from __future__ import annotations

import fractions
from typing import Any

import numpy as np
import tensorflow as tf

import builders
import rewriter
from rewriter import FixedPoint
from rewriter.quantization import phases
from small_models import VARIABLES, small

QUANTIZE = tf.constant(phases.QUANTIZE)


def fixed_point(values: Any, bits: int) -> np.ndarray:
    """The documented formula in rational numbers: the smallest power of two that fits."""
    exact = [fractions.Fraction(float(v)) for v in values]
    largest = max(abs(v) for v in exact)
    top = 2 ** (bits - 1) - 1
    exponent = -140
    while fractions.Fraction(2) ** exponent * top < largest:
        exponent += 1
    step = fractions.Fraction(2) ** exponent
    return np.array([float(round(v / step) * step) for v in exact])  # round: half to even


def eight_bits() -> dict[str, Any]:
    """The same operation on all four variables."""
    return {name: FixedPoint(8) for name in VARIABLES}


def _learned_class(keras: Any) -> Any:
    """A layer with variables of its own: ``inputs * factor + offset``."""

    @keras.saving.register_keras_serializable(package="tests")
    class Learned(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            add = self.add_weight
            self.factor = add(name="factor", shape=shape, initializer="ones", trainable=True)
            self.offset = add(name="offset", shape=shape, initializer="zeros", trainable=True)
            super().build(shape)

        def call(self, inputs: Any) -> Any:
            return inputs * self.factor + self.offset

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    return Learned


LEARNED = {kind: _learned_class(builders.keras_of(kind)) for kind in builders.KERASES}


@rewriter.register_op
def halved(value: Any) -> Any:
    """A function that is saved by name."""
    return value * 0.5


def trained_small(keras: Any) -> Any:
    """:func:`small` with statistics of the data."""
    model = builders.randomise_all(small(keras), 0)
    return builders.fit_statistics(model, builders.residual_data())


def values_of(layer: Any) -> dict[str, np.ndarray]:
    """The variables as float64."""
    return {name: np.asarray(getattr(layer, name)).astype(np.float64) for name in VARIABLES}


def recipe(*pipelines: Any) -> rewriter.Recipe:
    """A recipe with these pipelines."""
    return rewriter.Recipe(batch_norm_pipeline=list(pipelines))


def norms(qat: Any) -> dict[str, Any]:
    """Our normalizations by name."""
    return {n.name: n for n in qat._flatten_layers() if hasattr(n, "variables_in")}


def compiled(kind: str, qat: Any, rate: float = 0.05) -> Any:
    """Compiled with Adam."""
    keras = builders.keras_of(kind)
    loss = keras.losses.SparseCategoricalCrossentropy()
    qat.compile(keras.optimizers.Adam(rate), loss)
    return qat


def train(model: Any, data: Any) -> list[float]:
    """The loss of each batch."""
    return [float(np.ravel(model.train_on_batch(x, y))[0]) for x, y in data]
