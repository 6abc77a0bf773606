"""The recipe w4a8 beside int8: bytes and milliseconds of the files.

MobileNetV2 at 224x224 with random weights, and the MobileNetV2-like network for CIFAR-10 that we
trained (:mod:`benchmarks.accuracy_models`). The files of a network are loaded in one process by
LiteRT's default kernels (XNNPACK, one thread) and take turns, round by round, on the same input;
the ratio is the median over the rounds, with its quartiles. The bars: 0.62 of the bytes, 0.95 of
the time. The recipe keeps the first and the last layer at 8 bits; "ends too" does not.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tf_keras
from tqdm.auto import tqdm

import rewriter
from benchmarks import accuracy_models, architectures, report
from rewriter.checking.worker import Interpreter

SIZE, CALLS = 224, 5
TITLE = "4-bit kernels in 1x1 convolutions and Dense"
_W4A8 = rewriter.Recipe.named("w4a8").to_dict()
RECIPES: dict[str, Any] = {
    "int8": "int8",
    "w4a8": "w4a8",
    "w4a8, ends too": rewriter.Recipe(**_W4A8 | {"end_bits": 4}),
}


def _mobilenet_v2() -> tuple[Any, np.ndarray]:
    tf_keras.utils.set_random_seed(1)
    model = tf_keras.applications.MobileNetV2(weights=None)
    images = architectures.smooth_images(4, SIZE, 0)
    architectures.set_statistics(model, images)
    return model, images


def _trained() -> tuple[Any, np.ndarray]:
    images, _ = accuracy_models.images("mobilenetv2", "train")
    return accuracy_models.trained("mobilenetv2"), accuracy_models.scaled(images[:256])


MODELS: dict[str, Callable[[], tuple[Any, np.ndarray]]] = {
    "MobileNetV2, 224": _mobilenet_v2,
    "MobileNetV2-like, 32": _trained,
}


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


def measure(name: str, rounds: int) -> tuple[dict[str, int], dict[str, list[float]]]:
    """Bytes, and milliseconds of every round, by the recipe."""
    model, images = MODELS[name]()
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        for recipe, given in RECIPES.items():
            qat = rewriter.rewrite(model, given)
            rewriter.calibrate(qat, images, progress=False)
            rewriter.export_tflite(qat, path)
            files[recipe] = path.read_bytes()
    shape = (1, *images.shape[1:])
    data = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    loaded = {recipe: load(content, data) for recipe, content in files.items()}
    times: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
    turns = list(RECIPES)
    for _ in tqdm(range(rounds), desc=name):
        for recipe in turns:
            times[recipe].append(milliseconds(loaded[recipe]))
        turns.append(turns.pop(0))
    return {recipe: len(content) for recipe, content in files.items()}, times


def main() -> None:
    """Measure, print the table, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--results", type=Path, help="put the table into this file")
    options = parser.parse_args()
    rows = []
    for name in MODELS:
        sizes, times = measure(name, options.rounds)
        for recipe, size in sizes.items():
            ratios = [one / eight for one, eight in zip(times[recipe], times["int8"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            rows.append([
                name, recipe, f"{size:,}", f"{size / sizes['int8']:.3f}",
                f"{statistics.median(times[recipe]):.3f}", f"{middle:.3f} ({low:.3f}-{high:.3f})",
            ])  # fmt: skip
    text = report.table(["network", "recipe", "bytes", "/ int8", "ms", "/ int8"], rows)
    print(text)
    if options.results:
        head = f"`{report.command()}`; {report.load()}."
        report.replace_section(options.results, TITLE, f"{head}\n\n{text}")


if __name__ == "__main__":
    main()
