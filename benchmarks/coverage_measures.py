"""What the coverage matrix measures of one architecture, by kind."""

from __future__ import annotations

import gc
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import architectures, meter

HOSTS = re.compile(r"^(Depthwise|Separable)?(Conv[123]D(Transpose)?|Dense)$")
REPEAT_ABOVE = 1.5  # times clone_model: may be noise, so both are timed again


def _seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, so that other programs do not count."""
    gc.collect()
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def _expected_fused(keras: Any, model: Any) -> int:
    """How many normalizations follow a linear host with no other consumer, by Keras's own graph."""
    count = 0
    for layer in model.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        host = layer.input._keras_history[0]
        linear = getattr(getattr(host, "activation", None), "__name__", "") == "linear"
        count += bool(
            HOSTS.match(type(host).__name__) and linear and len(host._outbound_nodes) == 1
        )
    return count


def measure_rewrite(keras: Any, name: str, *, smallest: bool = False) -> dict[str, Any]:
    """Plan, counts, float-phase difference, time and memory of one architecture."""
    import rewriter

    empty = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3),
                              keras.layers.BatchNormalization()])  # fmt: skip
    rewriter.rewrite(empty)  # imports and first uses are not this architecture's
    before = meter.settle()
    build_seconds, model = _seconds(
        lambda: architectures.build(keras, name, smallest=smallest, classifier_activation=None)
    )
    build_peak = meter.memory("VmHWM") - before
    size = meter.settle() - before
    data = architectures.images(name, 8, 0, smallest=smallest)
    architectures.set_statistics(model, data)
    resident = meter.settle()
    rewrite_seconds, rewritten = _seconds(lambda: rewriter.rewrite(model))
    peak = meter.memory("VmHWM") - resident
    clone_seconds, clone = _seconds(lambda: keras.models.clone_model(model))
    del clone
    if rewrite_seconds > REPEAT_ABOVE * clone_seconds:
        clone_seconds = min(clone_seconds, _seconds(lambda: keras.models.clone_model(model))[0])
        rewrite_seconds = min(rewrite_seconds, _seconds(lambda: rewriter.rewrite(model))[0])
    return {
        "side": architectures.side(name, smallest=smallest),
        "layers": len(model.layers),
        "parameters": int(model.count_params()),
        **compare(keras, model, rewritten, data),
        "build_seconds": build_seconds,
        "rewrite_seconds": rewrite_seconds,
        "clone_seconds": clone_seconds,
        "time_ratio": rewrite_seconds / clone_seconds,
        "model_mb": size,
        "model_peak_mb": build_peak,
        "peak_mb": size + peak,
        "memory_ratio": (size + peak) / build_peak,
    }


def compare(keras: Any, model: Any, rewritten: Any, data: np.ndarray) -> dict[str, Any]:
    """What became of the normalizations, and the largest difference in phase ``float``."""
    import rewriter

    expected = np.asarray(model(data, training=False))
    actual = np.asarray(rewritten(data, training=False))
    actions = [entry.action for entry in rewriter.plan(model).entries]
    norms = keras.layers.BatchNormalization
    return {
        "batch_norms": sum(isinstance(x, norms) for x in model._flatten_layers()),
        "left": sum(isinstance(x, norms) for x in rewritten._flatten_layers()),
        "expected_fused": _expected_fused(keras, model),
        **{action: actions.count(action) for action in ("fused", "standalone", "refused")},
        "difference": float(np.abs(actual - expected).max() / np.abs(expected).max()),
        "signal": architectures.signal(expected),
    }


def measure_export(
    keras: Any, name: str, *, smallest: bool = False, samples: int = 2
) -> dict[str, Any]:
    """The int8 file: float tensors, agreement with the twin, and the kernels' own disagreement."""
    import rewriter

    model = architectures.build(keras, name, smallest=smallest)
    data = architectures.images(name, 16, 0, smallest=smallest)
    architectures.set_statistics(model, data)
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, data, progress=False)
    probe = architectures.images(name, samples, 1, smallest=smallest)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        seconds, report = _seconds(lambda: exported(qat, path))
        if isinstance(report, str):
            return {"side": architectures.side(name, smallest=smallest), "refusal": report}
        found = rewriter.verify(qat, path, probe, progress=False).comparison
        noise = _kernel_noise(path.read_bytes(), probe)
    steps, ends = found.operator_by_operator, found.end_to_end
    floating = np.asarray(model(probe, training=False))
    return {
        "side": architectures.side(name, smallest=smallest),
        "export_seconds": seconds,
        "bytes": report.bytes,
        "operators": sum(report.ops.values()),
        "float_tensors": len(report.float_tensors),
        "float_names": list(report.float_tensors)[:20],
        "tensors": len(steps),
        "worst_identical": min(a.identical for a in steps),
        "worst_tensor": min(steps, key=lambda a: a.identical).name,
        "worst_within_one": min(a.within_one for a in steps),
        "identical": _share(steps),
        "below_bar": [[a.name, a.identical, a.maximum] for a in steps if a.identical < 0.999],
        "end_to_end": _share(ends),
        "end_to_end_output": ends[-1].identical,
        "kernels_agree": noise[0],
        "kernels_agree_output": noise[1],
        "top1": found.top1,
        "differences": len(found.differences),
        "skipped": len(found.skipped),
        "missing": len(found.missing),
        "signal": architectures.signal(floating),
    }


def exported(qat: Any, path: Path) -> Any:
    """The report of an export, or the text of its refusal."""
    import rewriter
    from rewriter.errors import ExportError

    try:
        return rewriter.export_tflite(qat, path)
    except ExportError as refusal:
        return str(refusal)


def _share(agreements: Any) -> float:
    """The identical share of all elements of all tensors."""
    total = sum(a.elements for a in agreements)
    return sum(a.identical * a.elements for a in agreements) / max(total, 1)


def _kernel_noise(content: bytes, data: np.ndarray) -> tuple[float, float]:
    """Share of elements that XNNPACK and the builtin kernels compute alike: all, and the outputs.

    The noise floor of an end-to-end comparison: the same file on the same inputs.
    """
    from rewriter.checking import interpreter, reading

    file = reading.read(content)
    made = [
        index
        for index in file.producers()
        if "INT8" in file.tensors[index].dtype or "INT16" in file.tensors[index].dtype
    ]
    runs = {}
    for kernels in ("xnnpack", "builtin"):
        runner = interpreter.Runner(content, kernels=kernels, all_tensors=True)
        runs[kernels] = runner.run([data], tensors=made)
    pairs = [(runs["xnnpack"].tensors[i], runs["builtin"].tensors[i]) for i in made]
    same = sum(int(np.count_nonzero(a == b)) for a, b in pairs)
    outputs = zip(runs["xnnpack"].outputs, runs["builtin"].outputs, strict=True)
    output = [float((a == b).mean()) for a, b in outputs]
    return same / sum(a.size for a, _ in pairs), min(output)


def measure_tfmot(keras: Any, name: str, *, smallest: bool = False) -> dict[str, Any]:
    """Whether TFMOT takes the architecture, or why not."""
    import tensorflow_model_optimization as tfmot

    model = architectures.build(keras, name, smallest=smallest)
    start = time.perf_counter()
    try:
        quantized = tfmot.quantization.keras.quantize_model(model)
    except Exception as error:  # whatever it raises is its answer
        return {"takes": False, "reason": f"{type(error).__name__}: {str(error)[:160]}"}
    norms = keras.layers.BatchNormalization
    left = sum(isinstance(layer, norms) for layer in quantized._flatten_layers())
    return {"takes": True, "left": left, "seconds": time.perf_counter() - start}


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "rewrite": measure_rewrite,
    "export": measure_export,
    "tfmot": measure_tfmot,
}
