"""Training towards the outputs of the trained model (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from rewriter import keras_compat
from rewriter.keras_compat import flat_layers

TEMPERATURE = 3.0
# Added to probabilities before their logarithm. A file keeps those of a softmax in steps of 1/256.
_LEAST = 1e-4
# What layers of noise are told how much of it.
_AMOUNTS = {
    "AlphaDropout": "rate",
    "Dropout": "rate",
    "GaussianDropout": "rate",
    "GaussianNoise": "stddev",
    "SpatialDropout1D": "rate",
    "SpatialDropout2D": "rate",
    "SpatialDropout3D": "rate",
    "StochasticDepth": "drop_path_rate",
}


def distillation_loss(wanted: Any, found: Any, temperature: float = TEMPERATURE) -> Any:
    """A loss for ``compile`` of either Keras: the divergence between softened probabilities.

    ``T^2 KL(p' || q')`` with ``p' = softmax(log(p) / T)``, q' likewise (Hinton et al. 2015,
    section 2). Softened, the trained model says more than which class is the first: how much less
    likely the others are. The labels are its outputs::

        qat.compile(keras.optimizers.Adam(1e-4), rewriter.distillation_loss)
        qat.fit(x, model.predict(x))

    Of models that end in logits use the mean squared error, its limit for high temperatures.
    Dropout in the model that is trained is only noise here: :func:`rewriter.finetune` with
    ``teacher`` trains without.

    Args:
      wanted: probabilities of the trained model, float (N, ..., classes).
      found: of the model that is trained, the same shape.
      temperature: T, above 0.

    Returns:
      float32 (N, ...).
    """
    soft = [
        tf.math.log(tf.cast(each, tf.float32) + _LEAST) / temperature for each in (wanted, found)
    ]
    first, second = (tf.nn.log_softmax(each) for each in soft)
    return temperature**2 * tf.reduce_sum(tf.exp(first) * (first - second), -1)


for _flavour in keras_compat.usable():
    _flavour.keras.saving.register_keras_serializable(package="rewriter")(distillation_loss)


@contextlib.contextmanager
def without_noise(model: Any) -> Iterator[None]:
    """Within: a training step that is traced has no dropout and no noise.

    The outputs of the trained model have none, so that noise in the model that is to have the same
    is only an error. A step that has been traced stays as it is: ``compile`` before, and after.
    """
    flavour = keras_compat.flavour_of(model)
    noisy = []
    for layer in flat_layers(model):
        name = _AMOUNTS.get(flavour.class_name(layer))
        if name is not None:
            noisy.append((layer, name, getattr(layer, name)))
    try:
        for layer, name, _ in noisy:
            setattr(layer, name, 0.0)
        yield
    finally:
        for layer, name, amount in noisy:
            setattr(layer, name, amount)
