"""Re-estimation of the statistics of the batch normalizations after training."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from rewriter.errors import CalibrationError, UnsupportedModelError
from rewriter.keras_compat.variables import read
from rewriter.kernels.composed_norm import reestimating
from rewriter.reading import from_keras
from rewriter.training import finite
from rewriter.training.batches import batches_of
from rewriter.training.schedule import batch_norms


def reestimate_batch_norm(
    model: Any,
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    samples: int | None = None,
    progress: bool = True,
) -> Any:
    """Replace the moving statistics by the plain average over the batches of ``data``.

    In training the moving statistics lag behind the weights, and with quantization they are noisy
    (Nagel et al. 2022, arXiv:2203.11086, section 4.3; AIMET does the same). Everything else runs
    as in inference (no dropout), in the phase that the model is in; every batch normalization
    uses the batch's statistics.

    Args:
      model: a model that :func:`rewriter.rewrite` returned.
      data: inputs, as for :func:`rewriter.calibrate`.
      batch_size: for arrays; the larger the better.
      steps, samples: use so many batches, or samples; data without an end need one of the two.
      progress: show a progress bar.

    Returns:
      ``model``.

    Raises:
      CalibrationError: if there is no data, it does not fit, or it is not finite, or the output
        of a layer is not; the statistics are as before.
      UnsupportedModelError: if the model has no batch normalization of ours.
    """
    norms = batch_norms(model)
    if not norms:
        raise UnsupportedModelError(
            f"The model {model.name!r} has no quantization-aware batch normalization. "
            "Pass the model that rewriter.rewrite returned."
        )
    statistics = [v for n in norms for v in (n.moving_mean, n.moving_variance)]
    before = [(v, v.numpy()) for v in statistics]

    @tf.function(reduce_retracing=True)
    def step(inputs: Any, share: Any) -> Any:
        with reestimating(share):
            model(inputs, training=False)
        sums = [tf.reduce_sum(tf.convert_to_tensor(v)) for v in statistics]
        return tf.reduce_all([tf.math.is_finite(each) for each in sums])

    count = seen = 0
    try:
        batches, total = batches_of(model, data, batch_size, steps, samples)
        for inputs in tqdm(batches, total=total, desc="re-estimating", disable=not progress):
            flat, share = tf.nest.flatten(inputs), tf.constant(1.0 / (count + 1), tf.float32)
            finite.check_inputs(model, flat, seen)
            if not step(inputs, share):
                with reestimating(share):
                    error = finite.Watch(from_keras.read(model)).explain(flat, seen)
                raise error or CalibrationError(
                    f"The statistics of {_not_finite(model)!r} are not finite after sample {seen} "
                    "of the data (counted from 0), whose values are too large. Scale the data as "
                    "for training."
                )
            count += 1
            seen += len(flat[0])
        if not count:
            raise CalibrationError("The data is empty. Give at least one batch of inputs.")
    except BaseException:
        for variable, value in before:
            variable.assign(value)
        raise
    return model


def _not_finite(model: Any) -> str:
    """The first normalization with a statistic that is not finite."""
    return next(
        norm.name
        for norm in batch_norms(model)
        for name in ("moving_mean", "moving_variance")
        if not np.isfinite(read(getattr(norm, name))).all()
    )
