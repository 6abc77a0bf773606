"""Accuracy of exported files on real tasks: calibrated by each method, and fine-tuned by recipe.

The models are those of ``../shared``, the digits of the demo, and networks that we trained
(:mod:`benchmarks.accuracy_models`); the data for calibration and fine-tuning are held apart from
the test's. Fine-tuning needs no labels: the loss is the divergence from the float model's outputs
(distillation), so that classes that the data lack are not forgotten. What is measured is the file
in LiteRT, on all test samples; beside it TensorFlow's own post-training quantization,
ai-edge-quantizer (where it is installed) and TFMOT. Rows with several seeds give mean and standard
error.

    python benchmarks/accuracy.py --results benchmarks/ACCURACY.md

``--rows`` keeps what has been measured, one line of JSON for each seed, so that a run that was cut
off goes on, and ``--only`` measures some rows; the table has all that is kept. The anomaly detector
ad01 has no data in ``../shared``, so it is not among the tasks.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tensorflow as tf
import tf_keras
from PIL import Image
from tqdm.auto import tqdm

import rewriter
from benchmarks import accuracy_models, peers, report
from rewriter.checking import interpreter
from rewriter.cli import demo
from rewriter.quantization.quantizers import CALIBRATIONS
from rewriter.training.distillation import without_noise

SHARED = Path(os.environ.get("REWRITER_SHARED", Path(__file__).resolve().parents[2] / "shared"))
ROWS_FILE = Path(__file__).resolve().parent / "accuracy.jsonl"
CALIBRATED = 256  # samples
EPOCHS, RATE, BATCH = 10, 1e-4, 32
# Of the networks that we trained: so many of their training data, one epoch of them.
SUBSET, OURS_BATCH = 10_000, 64
WIDE = 1000  # test samples for int16x8, whose kernels take forty times as long
OURS = tuple(accuracy_models.MODELS)


def _kws() -> tuple[Any, ...]:
    test = np.load(SHARED / "datasets/mlperf_kws01/perf_kws01.npz")
    extra = np.load(SHARED / "datasets/kws_extra/speech_commands_mfcc_2400.npz")["x"]
    x = (test["x"].astype(np.float32) - 83) * 0.5847029
    return SHARED / "models/mlperf_kws01/kws_ref_model", extra, x, test["y"]


def _ic() -> tuple[Any, ...]:
    data = np.load(SHARED / "datasets/cifar10_subset/cifar10_subset.npz")
    train, x = (data[name].astype(np.float32) for name in ("x_train", "x_test"))
    return SHARED / "models/mlperf_ic01/pretrainedResnet.h5", train, x, data["y_test"].ravel()


def _ic_jpeg() -> tuple[Any, ...]:
    data = np.load(SHARED / "datasets/cifar10_jpeg/cifar10_jpeg.npz")
    x = {}
    for part in ("train", "test"):
        files, ends = data[f"jpeg_{part}"], data[f"offsets_{part}"]
        # Of the 50,000 to train on every tenth: enough to draw from.
        chosen = range(0, len(ends) - 1, 10 if part == "train" else 1)
        images = (Image.open(io.BytesIO(files[ends[i] : ends[i + 1]].tobytes())) for i in chosen)
        x[part] = np.stack([np.asarray(image, np.float32) for image in images])
    path = SHARED / "models/mlperf_ic01/pretrainedResnet.h5"
    return path, x["train"], x["test"], data["y_test"].ravel()


def _digits() -> tuple[Any, ...]:
    data = demo.digits()
    return demo.MODEL, data.x_train, data.x_test, data.y_test


def _ours(name: str) -> tuple[Any, ...]:
    x, _ = accuracy_models.images(name, "train")
    order = np.random.default_rng(0).permutation(len(x))[:SUBSET]
    test, y = accuracy_models.images(name, "test")
    scaled = accuracy_models.scaled
    return accuracy_models.trained(name), scaled(x[order]), scaled(test), y


TASKS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "kws01": _kws,
    "ic01": _ic,
    "digits": _digits,
    "ic01_jpeg": _ic_jpeg,
    **{name: functools.partial(_ours, name) for name in OURS},
}
DRAWS = {"ic01_jpeg": 4}  # of the samples for calibration; such a task is not trained


class Task:
    """A trained model with data; ``train`` (N, ...) has no labels."""

    def __init__(self, name: str):
        model, self.train, self.x, self.y = TASKS[name]()
        self.model = rewriter.load_model(model) if isinstance(model, (str, Path)) else model
        self.decided = self.model.predict(self.x, verbose=0, batch_size=256).argmax(-1)
        self.wanted = self.model.predict(self.train, verbose=0, batch_size=256)
        self.softmax = bool(np.allclose(self.wanted.sum(-1), 1, atol=1e-3))
        self.ours = name in OURS

    def sample(self, seed: int) -> np.ndarray:
        """To calibrate with."""
        order = np.random.default_rng(seed).permutation(len(self.train))
        return self.train[order[:CALIBRATED]]

    def accuracy(self, outputs: np.ndarray) -> float:
        count = len(outputs)
        return 100 * float(np.mean(outputs.reshape(count, -1).argmax(-1) == self.y[:count]))

    def of_file(self, content: bytes, most: int | None = None) -> dict[str, float]:
        (outputs,) = interpreter.run(content, [self.x[:most]])
        same = outputs.reshape(len(outputs), -1).argmax(-1) == self.decided[:most]
        own = {"as float": 100 * float(np.mean(same)), "bytes": len(content)}
        return {"accuracy": self.accuracy(outputs)} | own

    def exported(self, qat: Any, folder: Path, most: int | None = None) -> dict[str, float]:
        path = folder / "accuracy.tflite"
        rewriter.export_tflite(qat, path)
        own = {"model": self.accuracy(qat.predict(self.x[:most], verbose=0, batch_size=256))}
        return self.of_file(path.read_bytes(), most) | own

    def fit(self, qat: Any, rate: float) -> None:
        """On the float model's outputs."""
        epochs, batch = (1, OURS_BATCH) if self.ours else (EPOCHS, BATCH)
        schedule = tf_keras.optimizers.schedules.CosineDecay(
            rate, epochs * len(self.train) // batch
        )
        loss = rewriter.distillation_loss if self.softmax else tf_keras.losses.MeanSquaredError()
        qat.compile(tf_keras.optimizers.Adam(schedule), loss)
        with without_noise(qat):
            qat.fit(self.train, self.wanted, batch_size=batch, epochs=epochs, verbose=0)


def float_model(task: Task, folder: Path, seed: int) -> dict[str, float]:
    return {"accuracy": 100 * float(np.mean(task.decided == task.y))}


def tensorflow_ptq(task: Task, folder: Path, seed: int) -> dict[str, float]:
    return task.of_file(peers.post_training(task.model, task.sample(seed)))


def ai_edge_quantizer(kernel_bits: int) -> Callable[..., dict[str, float]]:
    """Static ranges by minimum and maximum; kernels of 4 bits in convolutions and Dense layers."""

    def run(task: Task, folder: Path, seed: int) -> dict[str, float]:
        from ai_edge_quantizer import qtyping, quantizer, recipe_manager

        recipe = recipe_manager.RecipeManager()
        every = qtyping.TFLOperationName
        recipe.add_static_config(".*", every.ALL_SUPPORTED, 8, 8)
        if kernel_bits < 8:
            for operator in (every.CONV_2D, every.FULLY_CONNECTED):
                recipe.add_static_config(".*", operator, 8, kernel_bits)
        path = folder / "float.tflite"
        path.write_bytes(peers.floating(task.model, task.x[:1]))
        made = quantizer.Quantizer(str(path), recipe.get_quantization_recipe())
        interpreter_ = tf.lite.Interpreter(str(path))
        ((key, signature),) = interpreter_.get_signature_list().items()
        data = [{signature["inputs"][0]: x[None]} for x in task.sample(seed)]
        found = made.calibrate({key: data}, num_threads=1)
        return task.of_file(bytes(made.quantize(found).quantized_model))

    return run


def tfmot(task: Task, folder: Path, seed: int) -> dict[str, float]:
    from tensorflow_model_optimization.quantization.keras import quantize_model

    tf_keras.utils.set_random_seed(seed)
    qat = quantize_model(task.model)
    task.fit(qat, RATE)
    return task.of_file(peers.converted(qat))


def calibrated(
    recipe: Any, method: str, most: int | None = None
) -> Callable[..., dict[str, float]]:
    """``most``: of the test samples; all if None."""

    def run(task: Task, folder: Path, seed: int) -> dict[str, float]:
        qat = rewriter.rewrite(task.model, recipe)
        rewriter.calibrate(qat, task.sample(seed), method=method, progress=False)
        return task.exported(qat, folder, most)

    return run


def fine_tuned(recipe: Any, rate: float = RATE) -> Callable[..., dict[str, float]]:
    """Calibrated by the default method, then trained."""

    def run(task: Task, folder: Path, seed: int) -> dict[str, float]:
        tf_keras.utils.set_random_seed(seed)
        qat = rewriter.rewrite(task.model, recipe)
        rewriter.calibrate(qat, task.sample(0), progress=False)
        rewriter.freeze_batch_norm(qat)
        task.fit(qat, rate)
        return task.exported(qat, folder)

    return run


def _recipe(name: str, **fields: Any) -> rewriter.Recipe:
    return rewriter.Recipe(**rewriter.Recipe.named(name).to_dict() | {"calibration": None} | fields)


def _bits(bits: int, ranges: str) -> rewriter.Recipe:
    return rewriter.Recipe(layers=[{"kernel_bits": bits}], ranges=ranges)


FOUR = ("w4a8", "w4a8-small")
RANGES = ("observed", "lsq+", "lsq")
AI_EDGE = {8: ai_edge_quantizer(8), 4: ai_edge_quantizer(4)}
PEERS = (tensorflow_ptq, tfmot, *AI_EDGE.values())
ROWS: dict[str, tuple[int, Callable[..., dict[str, float]]]] = {
    "float": (1, float_model),
    "TensorFlow PTQ int8": (1, tensorflow_ptq),
    "ai-edge-quantizer int8": (1, AI_EDGE[8]),
    "ai-edge-quantizer w4a8": (1, AI_EDGE[4]),
    **{f"calibrated int8, {m}": (1, calibrated("int8", m)) for m in CALIBRATIONS},
    "calibrated int8-per-tensor, percentile": (1, calibrated("int8-per-tensor", "percentile")),
    **{f"calibrated {r}, percentile": (1, calibrated(r, "percentile")) for r in FOUR},
    **{
        f"calibrated {r}, percentile, bias correction": (
            1,
            calibrated(_recipe(r, bias_correction=True), "percentile"),
        )
        for r in FOUR
    },
    "calibrated int16x8, minmax": (1, calibrated("int16x8", "minmax", WIDE)),
    "TFMOT int8": (3, tfmot),
    **{
        f"fine-tuned {recipe}, {ranges}": (3, fine_tuned(_recipe(recipe, ranges=ranges)))
        for ranges in RANGES
        for recipe in ("int8", *FOUR)
    },
    **{
        f"fine-tuned {bits} bits, {ranges}, rate {rate:g}": (
            3,
            fine_tuned(_bits(bits, ranges), rate),
        )
        for bits, rate in ((3, 3e-4), (2, 1e-3))
        for ranges in RANGES
    },
}


def _cells(found: list[dict[str, Any]]) -> list[str]:
    """File, model, agreement and KiB of the seeds of a row; or of what was kept of them."""
    if not found:
        return ["", "", "", ""]

    def mean(key: str) -> str:
        values = [row[key] for row in found if key in row]
        return f"{statistics.mean(values):.2f}" if values else ""

    values = [row["accuracy"] for row in found]
    error = found[0].get("error")
    if len(values) > 1:
        error = statistics.stdev(values) / len(values) ** 0.5
    size = f"{found[0]['bytes'] / 1024:.0f}" if "bytes" in found[0] else ""
    accuracy = mean("accuracy") + ("" if error is None else f" ± {error:.2f}")
    return [accuracy, mean("model"), mean("as float"), size]


def _table(rows: list[dict[str, Any]], tasks: list[str]) -> str:
    lines = []
    for label in ROWS:
        of_row = [row for row in rows if row["row"] == label]
        cells = [_cells([row for row in of_row if row["task"] == task]) for task in tasks]
        if any(cell[0] for cell in cells):
            lines.append([label, *(text for cell in cells for text in cell)])
    whats = ("file %", "model %", "as float %", "KiB")
    return report.table(["row", *(f"{task} {what}" for task in tasks for what in whats)], lines)


def _seeds(row: dict[str, Any]) -> Iterable[int]:
    return range(row["seeds"]) if "seeds" in row else [row["seed"]]


def _read(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line]


def main() -> None:
    """Measure what is not in ``--rows`` yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--only", nargs="+", default=["*"], help="rows, as patterns")
    parser.add_argument("--seeds", type=int, default=3, help="no more than so many of a row")
    parser.add_argument("--rows", type=Path, default=ROWS_FILE)
    parser.add_argument("--work", type=Path, default=Path("build"))
    parser.add_argument("--results", type=Path, help="replace this benchmark's section of the file")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = _read(args.rows)
    for name in args.tasks:
        task = None
        for label, (seeds, measure) in tqdm(ROWS.items(), desc=name):
            trained = label.startswith(("fine-tuned", "TFMOT"))
            if name in DRAWS and trained:
                continue
            if not any(fnmatch.fnmatch(label, pattern) for pattern in args.only):
                continue
            found = [row for row in rows if (row["task"], row["row"]) == (name, label)]
            done = {seed for row in found for seed in _seeds(row)}
            draws = DRAWS.get(name, 1) if label.startswith("calibrated") else 1
            for seed in range(min(max(seeds, draws), max(args.seeds, draws))):
                if seed in done:
                    continue
                task = task or Task(name)
                start = time.time()
                try:
                    values = measure(task, args.work, seed)
                except Exception as error:
                    if measure not in PEERS:
                        raise
                    # It is not installed, or does not take the model.
                    tqdm.write(f"{name}, {label}: {type(error).__name__}: {str(error)[:200]}")
                    break
                rows.append({"task": name, "row": label, "seed": seed, **values})
                with args.rows.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                tqdm.write(f"{rows[-1]}, {time.time() - start:.0f} s")
    if args.results:
        every = [task for task in TASKS if any(row["task"] == task for row in rows)]
        words = (
            f"`{report.command()}`\n\nAccuracy in percent, of the file in LiteRT and of the model "
            f"in Keras, and the file's size. Calibrated with {CALIBRATED} samples; fine-tuned for "
            f"{EPOCHS} epochs of Adam from {RATE:g} on the float model's softened outputs, without "
            f"dropout, statistics frozen, where a row names no other rate; several seeds where "
            f"there is a standard error, else one. int16x8: of the first {WIDE} test samples. "
            f"ic01_jpeg: "
            f"four draws of the samples. {', '.join(OURS)}: "
            f"networks of ours (`accuracy_models.py`) on 10,000 test images, fine-tuned for one "
            f"epoch over {SUBSET} of their training images in batches of {OURS_BATCH}. Where a "
            f"share a of N decisions is float's, the difference in accuracy to float has a "
            f"standard error of at most sqrt((1 - a) / N): 0.10 points at 99 % of 10,000, 0.3 of "
            f"1,000."
        )
        tables = [_table(rows, every[i : i + 2]) for i in range(0, len(every), 2)]
        report.replace_section(args.results, "Accuracy", "\n\n".join([words, *tables]))


if __name__ == "__main__":
    main()
