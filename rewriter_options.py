"""Options that several commands of ``rewriter`` share, and what their values may be.

Outside of the package, as ``rewriter_command`` is and for the same reason.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

# As in the package, which is not imported for them; a test compares.
RECIPES = ("int8", "int8-per-tensor", "w4a8", "w4a8-small", "w2-dense", "int16x8")
CALIBRATIONS = ("minmax", "percentile", "mse", "entropy")

TARGETS = (
    "xnnpack", "tflite-micro", "ethos-u", "edgetpu", "stm32n6", "stm32mp2", "hexagon", "neutron",
    "nnapi",
)  # fmt: skip

# What decides how a model is rewritten and computed: what a bug report should say.
VERSIONS = ("tensorflow", "tf-keras", "keras", "ai-edge-litert", "numpy")

DATA_HELP = (
    "an .npz or .npy file, a folder of images, a TFRecord file, or MODULE:FUNCTION, which returns "
    "a tf.data.Dataset"
)
QAT_HELP = "what `rewriter convert` wrote"
MODEL_HELP = "a SavedModel folder, a .keras file or an .h5 file"


class Version(argparse.Action):
    """Writes the versions and ends; none of the packages is imported for it."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        lines = [f"rewriter {metadata.version('rewriter')}"]
        lines += [f"  {name} {_installed(name)}" for name in VERSIONS]
        lines.append(f"  Python {platform.python_version()} on {platform.platform()}")
        sys.stdout.write("\n".join(lines) + "\n")
        parser.exit()


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not installed"


def showing(command: argparse.ArgumentParser) -> None:
    """How much is shown."""
    command.add_argument("--debug", action="store_true", help="show tracebacks and all logging")
    much = command.add_mutually_exclusive_group()
    much.add_argument(
        "-q", "--quiet", action="store_true",
        help="show errors and warnings only (and what --json writes)",
    )  # fmt: skip
    much.add_argument(
        "-v", "--verbose", action="store_true",
        help="show progress where stderr is no terminal, too, and when each step began",
    )  # fmt: skip


def output(command: argparse.ArgumentParser, metavar: str, text: str) -> None:
    """Where the command writes."""
    command.add_argument("-o", "--output", type=Path, required=True, metavar=metavar, help=text)


def sizes(command: argparse.ArgumentParser) -> None:
    """Of inputs that the model leaves open."""
    command.add_argument(
        "--input-shape", type=shape, action="append", default=[], metavar="SIZES",
        help="sizes of an input that the model leaves open, without the batch: 224,224,3; for "
        "several inputs NAME=224,224,3, once for each",
    )  # fmt: skip


def shape(text: str) -> tuple[str | None, tuple[int, ...]]:
    """``224,224,3`` or ``NAME=224,224,3``."""
    name, equals, sizes = text.rpartition("=")
    try:
        found = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"not sizes such as 224,224,3: {sizes!r}") from None
    return (name if equals else None), found


def quantizing(command: argparse.ArgumentParser) -> None:
    """How to quantize, and how to calibrate."""
    command.add_argument(
        "--recipe", metavar="RECIPE",
        help=f"how to quantize: one of {', '.join(RECIPES)}, or a JSON file",
    )  # fmt: skip
    command.add_argument(
        "--method", choices=CALIBRATIONS,
        help="how ranges are made of what was seen: all of it, 99.99 %% of it on either side, or "
        "what gives the smallest squared error or divergence (default: what the recipe says)",
    )  # fmt: skip


def training_labels(command: argparse.ArgumentParser) -> None:
    """To train on, or to score by."""
    command.add_argument(
        "--labels", metavar="NAME",
        help="the array or feature with the labels: classes, or numbers of the outputs' shape; "
        "`folder`: each image's folder names its class",
    )  # fmt: skip


def training(command: argparse.ArgumentParser, epochs: int, text: str) -> argparse._ArgumentGroup:
    """How to fine-tune; ``epochs`` is the default, ``text`` what their number says."""
    group = command.add_argument_group("fine-tuning")
    group.add_argument(
        "--epochs", type=count, default=epochs, metavar="N",
        help=f"{text}; the best by the exported file's score is taken",
    )  # fmt: skip
    group.add_argument(
        "--learning-rate", type=number, default=1e-4, metavar="X",
        help="of Adam at the start; it falls to 0 as a cosine (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--batch-size", type=positive, default=32, metavar="N",
        help="samples in a step (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--loss", metavar="NAME",
        help="of keras.losses, or MODULE:FUNCTION (default: what suits the labels)",
    )  # fmt: skip
    group.add_argument(
        "--metric", metavar="NAME",
        help="to score by: accuracy, a name of keras.metrics, or MODULE:FUNCTION of labels and "
        "outputs; what is called an error, loss, crossentropy or divergence is better when it is "
        "smaller (default: what suits the labels, else the loss)",
    )  # fmt: skip
    group.add_argument(
        "--resume", type=Path, metavar="DIR",
        help="keep each epoch in this folder, and go on from what is there; removed at the end",
    )  # fmt: skip
    group.add_argument("--seed", type=count, default=0, metavar="N", help="of all that is random")
    return group


def allow_float(command: argparse.ArgumentParser) -> None:
    """For layers without an integer form."""
    command.add_argument(
        "--allow-float", action="store_true",
        help="compute layers without an integer form in float, instead of refusing",
    )  # fmt: skip


def json(command: argparse.ArgumentParser) -> None:
    """For machines."""
    command.add_argument("--json", action="store_true", help="write JSON to stdout")


def reporting(command: argparse.ArgumentParser) -> None:
    """What shows a result."""
    group = command.add_argument_group("reports")
    group.add_argument(
        "--report", type=Path, metavar="FILE",
        help="also write an .html file that shows all of it; with --json, its numbers too "
        "(needs pip install 'rewriter[report]')",
    )  # fmt: skip
    group.add_argument(
        "--model-explorer", type=Path, metavar="FILE",
        help="also write a .json overlay with the signal to noise of every operator, for Google's "
        "Model Explorer",
    )  # fmt: skip
    group.add_argument(
        "--tensorboard", type=Path, metavar="DIR",
        help="also add epochs, scores and signal to noise to this folder, for TensorBoard",
    )  # fmt: skip


def loading(command: argparse.ArgumentParser) -> None:
    """How a model is read."""
    group = command.add_argument_group("loading")
    group.add_argument(
        "--keras", choices=("tf_keras", "keras"),
        help="load with this Keras (default: the one that wrote the file; Keras 3 for a SavedModel "
        "without layers)",
    )  # fmt: skip
    group.add_argument(
        "--signature", metavar="NAME",
        help="of a SavedModel: take the graph of this signature instead of layers",
    )  # fmt: skip
    group.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE",
        help="import a Python module first, which registers classes of yours; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--allow-lambda", action="store_true",
        help="trust the file entirely: it may hold Python code, as Lambda layers do, which can do "
        "anything that you can",
    )  # fmt: skip


def data(command: argparse.ArgumentParser, preferred: str, taken: int | str = 512) -> None:
    """Which samples, and what becomes of the stored values."""
    group = command.add_argument_group("data")
    group.add_argument(
        "--array", metavar="NAME",
        help="the array of the .npz file to use (default: the arrays called like the model's "
        f"inputs, or the only one, or the first of {preferred})",
    )  # fmt: skip
    group.add_argument(
        "--features", type=Path, metavar="FILE",
        help="what stands in the examples of a TFRecord file: JSON such as "
        '{"image": {"type": "image"}, "label": {"type": "int64", "shape": []}}',
    )  # fmt: skip
    group.add_argument(
        "--samples", type=samples, default=taken, metavar="N",
        help="use so many, spread over the data, or `all` (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--scale", type=number, default=1.0, metavar="X",
        help="factor on the stored values, such as 1/255 (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--offset", type=number, default=0.0, metavar="X",
        help="added after the factor (default: 0)",
    )  # fmt: skip


def number(text: str) -> float:
    """A number, or a fraction of two such as 1/127.5."""
    above, slash, below = text.partition("/")
    try:
        return float(Fraction(above) / Fraction(below)) if slash else float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from None


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"not between 0 and 1: {text!r}")
    return value


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a positive whole number: {text!r}")
    return int(text)


def count(text: str) -> int:
    """A whole number from 0."""
    return 0 if text == "0" else positive(text)


def widths(text: str) -> tuple[int, ...]:
    """Whole numbers, with commas between them."""
    return tuple(positive(part) for part in text.split(","))


def batch(text: str) -> int | None:
    """A whole number, or None for ``any``."""
    return None if text == "any" else positive(text)


def samples(text: str) -> int | None:
    """A whole number, or None for ``all``."""
    return None if text == "all" else positive(text)
