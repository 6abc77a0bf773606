"""How the time of ``rewrite`` grows with the length of a model, beside that of ``clone_model``.

    python benchmarks/scaling.py --keras tf_keras keras --results benchmarks/RESULTS.md

Chains of blocks of 1x1 convolutions on tiny inputs: building graphs is all there is to do. CPU
seconds, for every length the best of ``--rounds`` of either; then a straight line through the
seconds, and the exponent of the growth between neighbouring lengths (1 is linear).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import rewriter
from benchmarks import report

BLOCKS = (50, 100, 200, 400, 800, 1600)
FRAMES_PER_LAYER = 8  # Keras walks a graph by recursion: what a chain needs of Python's stack


def chain(keras: Any, blocks: int) -> Any:
    """Convolution, batch normalization, ReLU, over and over: all fused."""
    k = keras.layers
    x = inputs = keras.Input((2, 2, 2))
    for _ in range(blocks):
        x = k.ReLU()(k.BatchNormalization()(k.Conv2D(2, 1)(x)))
    return keras.Model(inputs, x)


def preactivation(keras: Any, blocks: int) -> Any:
    """Batch normalization, ReLU, convolution and the sum with the input: all standalone."""
    k = keras.layers
    x = inputs = keras.Input((2, 2, 2))
    for _ in range(blocks):
        x = k.Add()([x, k.Conv2D(2, 1)(k.ReLU()(k.BatchNormalization()(x)))])
    return keras.Model(inputs, x)


def concatenated(keras: Any, blocks: int) -> Any:
    """Dense blocks of twelve: concatenations whose inputs share one scale."""
    k = keras.layers
    x = inputs = keras.Input((2, 2, 2))
    for index in range(blocks):
        y = k.Conv2D(2, 1)(k.ReLU()(k.BatchNormalization()(x)))
        x = k.Conv2D(2, 1)(x) if index % 12 == 11 else k.Concatenate()([x, y])
    return keras.Model(inputs, x)


def grouped(keras: Any, blocks: int) -> Any:
    """A convolution by groups: a Lambda that slices, and a convolution, for each."""
    k = keras.layers
    inputs = keras.Input((2, 2, blocks))
    x = k.Conv2D(blocks, 1)(inputs)
    parts = []
    for index in range(blocks):
        take = k.Lambda(lambda t, i=index: t[..., i : i + 1], output_shape=(2, 2, 1))
        parts.append(k.Conv2D(1, 1)(take(x)))
    return keras.Model(inputs, k.BatchNormalization()(k.Concatenate()(parts)))


KINDS: dict[str, Callable[[Any, int], Any]] = {
    "chain": chain,
    "preactivation": preactivation,
    "concatenated": concatenated,
    "grouped": grouped,
}


def _best(function: Callable[[Any], Any], model: Any, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        gc.collect()
        start = time.process_time()  # other programs do not count
        function(model)
        times.append(time.process_time() - start)
    return min(times)


def measure(keras: Any, kind: str, blocks: int, rounds: int) -> dict[str, Any]:
    """Seconds of rewrite and of clone_model for one length, one right after the other."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), FRAMES_PER_LAYER * 5 * blocks))
    keras.backend.clear_session()
    model = KINDS[kind](keras, blocks)
    rewrite = _best(rewriter.rewrite, model, rounds)
    clone = _best(keras.models.clone_model, model, rounds)
    layers = len(model.layers)
    return {"blocks": blocks, "layers": layers, "rewrite": rewrite, "clone": clone}


def fit(rows: list[dict[str, Any]], key: str) -> tuple[float, float]:
    """Milliseconds per block (the slope of the straight line through the seconds), and R^2."""
    x = np.array([row["blocks"] for row in rows], float)
    y = np.array([row[key] for row in rows], float)
    slope, intercept = np.polyfit(x, y, 1)
    rest = ((y - slope * x - intercept) ** 2).sum()
    total = ((y - y.mean()) ** 2).sum()
    return 1e3 * float(slope), 1 - float(rest / total)


def exponents(rows: list[dict[str, Any]], key: str) -> list[float]:
    """log(time ratio) / log(length ratio) between neighbours."""
    pairs = itertools.pairwise(rows)
    return [math.log(b[key] / a[key]) / math.log(b["blocks"] / a["blocks"]) for a, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keras", nargs="+", choices=("tf_keras", "keras"), default=["tf_keras"])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--blocks", nargs="+", type=int, default=list(BLOCKS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--results", type=Path, help="replace this benchmark's sections there")
    args = parser.parse_args()
    for name in args.keras:
        keras = importlib.import_module(name)
        rewriter.rewrite(chain(keras, 3))  # first uses
        text = [f"`{report.command()}`: CPU seconds."]
        for kind in args.kinds:
            rows = []
            for blocks in sorted(args.blocks):
                rows.append(measure(keras, kind, blocks, args.rounds))
                print(name, kind, rows[-1], flush=True)
            text += rendered(kind, rows)
        if args.results:
            report.replace_section(args.results, f"Growth of rewrite ({name})", "\n\n".join(text))
        else:
            print("\n\n".join(text))


def rendered(kind: str, rows: list[dict[str, Any]]) -> list[str]:
    """A table, and how the seconds grow."""
    header = (kind, "layers", "rewrite s", "clone s", "ratio")
    cells = [
        (
            f"{row['blocks']} blocks",
            row["layers"],
            f"{row['rewrite']:.2f}",
            f"{row['clone']:.2f}",
            f"{row['rewrite'] / row['clone']:.2f}",
        )
        for row in rows
    ]
    text = [report.table(header, cells)]
    for key in ("rewrite", "clone") if len(rows) > 2 else ():
        slope, quality = fit(rows, key)
        growth = ", ".join(f"{e:.2f}" for e in exponents(rows, key))
        text.append(f"{key}: {slope:.1f} ms per block, R^2 {quality:.4f}; exponents {growth}")
    return text


if __name__ == "__main__":
    main()
