"""What lifting makes of one architecture that was written as a graph, by every writer there is.

The original model is built once, with statistics that data leave and random gammas, and written by
its own ``export`` and by ``tf.saved_model.save``. Both are lifted into its own Keras: the other one
computes normalizations in another order, and these networks make a thousandfold of every rounding
(tests lift into both, with milder statistics).
"""

from __future__ import annotations

import collections
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import architectures, coverage_measures, meter

SAMPLES = 8
WRITERS = ("export", "tf.saved_model.save")


def write(keras: Any, model: Any, writer: str, path: Path) -> None:
    """Write a model as a graph."""
    import tensorflow as tf

    if writer == "export":
        model.export(str(path), **({"verbose": False} if keras.__name__ == "keras" else {}))
        return
    module = tf.Module()
    module.held = [getattr(v, "value", v) if keras.__name__ == "keras" else v
                   for v in model.variables]  # fmt: skip
    specs = [tf.TensorSpec(t.shape, t.dtype, name=f"input_{i}") for i, t in enumerate(model.inputs)]
    module.run = tf.function(lambda *x: model(x[0], training=False), input_signature=specs)
    tf.saved_model.save(module, str(path), signatures=module.run)


def measure_lift(keras: Any, name: str, *, smallest: bool = True) -> dict[str, Any]:
    """Of each writer: difference, plan, weights, seconds and memory beside those of Keras's load.

    Of the largest architectures only what ``export`` writes.
    """
    import rewriter
    from rewriter.lifting import lift, source

    with tempfile.TemporaryDirectory() as folder:  # imports and first uses are no architecture's
        empty = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)])
        write(keras, empty, "export", Path(folder) / "empty")
        empty.save(Path(folder) / "empty.keras")
        rewriter.load_model(Path(folder) / "empty", flavour=keras.__name__)
        keras.models.load_model(Path(folder) / "empty.keras")
    model = architectures.build(keras, name, smallest=smallest, classifier_activation=None)
    data = architectures.images(name, SAMPLES, 0, smallest=smallest)
    architectures.set_statistics(model, data)
    expected = np.asarray(model(data, training=False))
    planned = rewriter.plan(model)
    row: dict[str, Any] = {
        "side": architectures.side(name, smallest=smallest),
        "layers": len(model.layers),
        "parameters": int(model.count_params()),
        "norms": len(planned.entries),
        "fused": planned.count("fused"),
        "signal": architectures.signal(expected),
        "writers": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.keras")
        try:
            reading, loaded = meter.read(
                lambda: keras.models.load_model(Path(folder) / "model.keras", compile=False)
            )
            del loaded
            row["keras load"] = vars(reading)
        except Exception as error:  # there are architectures that Keras does not load again
            row["keras load fails"] = str(error)[:80]
        for writer in WRITERS:
            if name in architectures.LARGEST and writer != "export":
                continue
            path = Path(folder) / writer
            write(keras, model, writer, path)
            signature = source.signatures(path)[-1]
            reading, lifted = meter.read(
                lambda path=path: rewriter.load_model(path, flavour=keras.__name__)
            )
            found = np.asarray(lifted(data, training=False))
            row["writers"][writer] = {
                "load": vars(reading),
                "operators": len(source.saved_model(path, signature).nodes),
                "layers": len(lifted.layers),
                "kept": len(lift.of(lifted).kept),
                "difference": float(np.abs(found - expected).max() / np.abs(expected).max()),
                "plan": _actions(rewriter.plan(lifted)) == _actions(planned),
                "floats": len(rewriter.plan(lifted).float_layers) - len(planned.float_layers),
                "weights": _trained(lifted) == _trained(model),
            }
            del lifted
    return row


def _actions(plan: Any) -> dict[str, int]:
    return dict(collections.Counter(entry.action for entry in plan.entries))


def _trained(model: Any) -> list[int]:
    """The sizes of the weights that are trained."""
    return sorted(int(np.prod(tuple(w.shape))) for w in model.trainable_weights)


def measure_lifted(keras: Any, name: str) -> dict[str, Any]:
    """The whole way of a model that ``export`` wrote: lifted, rewritten, calibrated, exported."""
    import rewriter

    model = architectures.build(keras, name, smallest=True)
    data = architectures.images(name, 8, 0, smallest=True)
    architectures.set_statistics(model, data)
    with tempfile.TemporaryDirectory() as folder:
        write(keras, model, "export", Path(folder) / "exported")
        lifted = rewriter.load_model(Path(folder) / "exported", flavour=keras.__name__)
        qat = rewriter.rewrite(lifted)
        found, wanted = (np.asarray(m(data, training=False)) for m in (qat, model))
        rewriter.calibrate(qat, data, progress=False)
        path = Path(folder) / "model.tflite"
        said = coverage_measures.exported(qat, path)
        if isinstance(said, str):
            return {"refusal": said}
        checked = rewriter.verify(
            qat, path, architectures.images(name, 2, 1, smallest=True), progress=False
        )
    return {
        "float": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
        "operators": sum(said.ops.values()),
        "float_tensors": len(said.float_tensors),
        "identical": min(step.identical for step in checked.comparison.operator_by_operator),
        "fault": None if checked.training.fault is None else str(checked.training.fault),
    }
