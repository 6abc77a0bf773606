"""What a run has done, as summaries for TensorBoard."""

from __future__ import annotations

import math
from pathlib import Path

import tensorflow as tf

from rewriter.checking.verify import Verification
from rewriter.errors import RewriterError
from rewriter.report.model_explorer import EQUAL_DB
from rewriter.workflow.quantize import Quantized


def write_tensorboard(result: Quantized | Verification, folder: str | Path) -> None:
    """Write the epochs of fine-tuning, the scores and the signal to noise as TensorBoard summaries.

    ``epoch/score`` and ``epoch/loss`` are by epoch, ``signal_to_noise_db`` by operator in the order
    of execution (200 stands for equal tensors), ``score/...`` at step 0. They are added to what is
    in the folder, as TensorBoard's own callbacks do.

    Args:
      result: what :func:`rewriter.quantize` or :func:`rewriter.verify` returned.
      folder: a log folder; it is made if it is not there.

    Raises:
      RewriterError: ``folder`` is a file.
      OSError: it cannot be written.
    """
    check(folder)
    quantized = result if isinstance(result, Quantized) else None
    verification = result.verification if isinstance(result, Quantized) else result
    Path(folder).mkdir(parents=True, exist_ok=True)
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        if quantized is not None and quantized.tuning is not None:
            tuning = quantized.tuning
            for place, (score, loss) in enumerate(zip(tuning.scores, tuning.losses, strict=True)):
                _write("scalars", "epoch/score", score, step=tuning.first + place)
                if loss is not None:
                    _write("scalars", "epoch/loss", loss, step=tuning.first + place)
        for name, score in ({} if quantized is None else quantized.scores).items():
            _write("scalars", f"score/{name.replace(' ', '_')}", score, step=0)
        for place, tensor in enumerate(verification.training.tensors):
            value = tensor.snr_db if math.isfinite(tensor.snr_db) else EQUAL_DB
            _write("scalars", "signal_to_noise_db", value, step=place)
        # As it is laid out: Markdown's block of code.
        text = "\n".join(f"    {line}" for line in str(result).splitlines())
        _write("text", "verification", text, step=0)
    writer.close()


def check(folder: str | Path) -> None:
    """Check, before the work, that summaries can be written.

    Raises:
      RewriterError: ``folder`` is a file.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise RewriterError(
            f"TensorBoard's summaries go into a folder. Received: the file {str(folder)!r}."
        )


def _write(plugin: str, tag: str, value: float | str, step: int) -> None:
    """As ``tf.summary.scalar`` and ``text`` do, which need TensorBoard to be installed."""
    kind = tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin)
    metadata = tf.compat.v1.SummaryMetadata(plugin_data=kind)
    tensor = tf.constant(value, tf.string if isinstance(value, str) else tf.float32)
    tf.summary.write(tag, tensor, step=step, metadata=metadata)
