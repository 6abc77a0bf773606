"""4-bit kernels in 1x1 convolutions and Dense: the file beside that with 8 bits everywhere.

MobileNetV2 at 224x224. Both files are loaded in one process by LiteRT's default kernels (XNNPACK)
and take turns, round by round, on the same input; the ratio is the median over the rounds, with
its quartiles. The bars: 0.60 of the bytes, and no more time.

    python benchmarks/int4.py --rounds 15
    python benchmarks/int4.py --results benchmarks/RESULTS.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tf_keras
from tqdm.auto import tqdm

import rewriter
from benchmarks import architectures, report
from rewriter.checking.worker import Interpreter
from rewriter.quantization.quantizers import PerChannelQuantizer

SIZE, CALLS = 224, 5
TITLE = "4-bit kernels in 1x1 convolutions and Dense"


def quantized(bits: int) -> Any:
    """MobileNetV2, calibrated, with kernels of ``bits`` bits in products over the channels."""
    tf_keras.utils.set_random_seed(1)
    model = tf_keras.applications.MobileNetV2(weights=None)
    images = architectures.smooth_images(4, SIZE, 0)
    architectures.set_statistics(model, images)
    qat = rewriter.rewrite(model)
    for layer in qat.layers:
        kernel = getattr(layer, "kernel", None)
        product = kernel is not None and (len(kernel.shape) == 2 or kernel.shape[:2] == (1, 1))
        if product and getattr(layer, "kernel_quantizers", ()):
            (before,) = layer.kernel_quantizers
            layer.kernel_quantizers = (PerChannelQuantizer(bits, before.channel_axes),)
    rewriter.calibrate(qat, images)
    return qat


def load(content: bytes, data: np.ndarray) -> Any:
    """An interpreter that has read its input."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], data)
    interpreter.invoke()
    return interpreter


def milliseconds(interpreter: Any) -> float:
    """One call, from several in a row."""
    start = time.perf_counter()
    for _ in range(CALLS):
        interpreter.invoke()
    return 1e3 * (time.perf_counter() - start) / CALLS


def measure(rounds: int) -> tuple[dict[int, int], dict[int, list[float]]]:
    """Bytes, and milliseconds of every round, by the width."""
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for bits in (8, 4):
            path = Path(folder) / f"{bits}.tflite"
            rewriter.export_tflite(quantized(bits), path)
            files[bits] = path.read_bytes()
    data = np.random.default_rng(0).integers(-128, 128, (1, SIZE, SIZE, 3)).astype(np.int8)
    loaded = {bits: load(content, data) for bits, content in files.items()}
    times: dict[int, list[float]] = {8: [], 4: []}
    for index in tqdm(range(rounds), desc="rounds"):
        for bits in (8, 4) if index % 2 else (4, 8):
            times[bits].append(milliseconds(loaded[bits]))
    return {bits: len(content) for bits, content in files.items()}, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--results", type=Path, help="put the table into this file")
    options = parser.parse_args()
    sizes, times = measure(options.rounds)
    ratios = [four / eight for four, eight in zip(times[4], times[8], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    rows = [
        [f"{bits} bits", f"{sizes[bits]:,}", f"{statistics.median(times[bits]):.2f}"]
        for bits in (8, 4)
    ]
    rows.append(["ratio", f"{sizes[4] / sizes[8]:.3f}", f"{middle:.3f} ({low:.3f}-{high:.3f})"])
    text = report.table(["MobileNetV2, products", "bytes", "ms"], rows)
    print(text)
    if options.results:
        head = f"`{report.command()}`; {report.load()}."
        report.replace_section(options.results, TITLE, f"{head}\n\n{text}")


if __name__ == "__main__":
    main()
