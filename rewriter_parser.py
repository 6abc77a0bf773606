"""The arguments of the command ``rewriter``.

Outside of the package, as ``rewriter_command`` is and for the same reason. One file, though long:
what a user reads with ``--help``, command by command.
"""

from __future__ import annotations

import argparse
import platform
import sys
import textwrap
from collections.abc import Sequence
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

import shtab

# As in the package, which is not imported for them; a test compares.
RECIPES = ("int8", "int8-per-tensor", "w4a8", "w4a8-small", "w2-dense")
CALIBRATIONS = ("minmax", "percentile", "mse", "entropy")

TARGETS = (
    "xnnpack", "tflite-micro", "ethos-u", "edgetpu", "stm32n6", "stm32mp2", "hexagon", "neutron",
    "nnapi",
)  # fmt: skip

# What decides how a model is rewritten and computed: what a bug report should say.
VERSIONS = ("tensorflow", "tf-keras", "keras", "ai-edge-litert", "numpy")

_DATA_HELP = (
    "an .npz or .npy file, a folder of images, a TFRecord file, or MODULE:FUNCTION, which returns "
    "a tf.data.Dataset"
)
_QAT_HELP = "what `rewriter convert` wrote"

_EXAMPLES = {
    "rewriter": """
        rewriter inspect trained.h5
        rewriter convert trained.h5 -o qat.keras --calibrate data.npz
        rewriter export qat.keras -o model.tflite
        rewriter verify qat.keras model.tflite --data data.npz
        rewriter quantize trained.h5 --data train.npz --labels y --epochs 5 -o model.tflite""",
    "inspect": """
        rewriter inspect trained_saved_model
        rewriter inspect trained.keras --json""",
    "convert": """
        rewriter convert trained.h5 -o qat.keras --calibrate data.npz
        rewriter convert trained.keras -o qat.h5 --calibrate images/ --scale 1/255
        rewriter convert saved_model -o qat_saved_model --recipe recipe.json""",
    "export": """
        rewriter export qat.keras -o model.tflite
        rewriter export qat.keras -o model.tflite --batch any
        rewriter export qat.keras -o model.tflite --float-io --json""",
    "check": """
        rewriter check model.tflite --target edgetpu
        rewriter check model.tflite --target ethos-u --json""",
    "verify": """
        rewriter verify qat.keras model.tflite --data data.npz
        rewriter verify qat.keras model.tflite --data data.npz --array x_test --labels y_test
        rewriter verify qat.keras model.tflite --data data.npz --min-identical 0.999
        rewriter verify qat.keras model.tflite --data data.npz --min-snr 20 --json
        rewriter verify qat.keras model.tflite --data data.npz --report report.html""",
    "quantize": """
        rewriter quantize trained.h5 --data train.npz -o model.tflite
        rewriter quantize trained.keras --data train.npz --labels y --epochs 5 -o model.tflite
        rewriter quantize saved_model --data images/ --labels folder --scale 1/255 -o model.tflite
        rewriter quantize trained.h5 --data train.npz --labels y --test test.npz --recipe w4a8 \\
            --epochs 10 --resume work/ -o model.tflite""",
    "finetune": """
        rewriter finetune qat.keras --data train.npz --labels y -o trained_qat.keras
        rewriter finetune qat.keras --data images/ --teacher trained.keras --epochs 10 \\
            --resume work/ -o trained_qat.keras""",
    "sensitivity": """
        rewriter sensitivity trained.h5 --data data.npz
        rewriter sensitivity trained.keras --data data.npz --labels y --budget-bytes 40000 \\
            -o recipe.json
        rewriter sensitivity trained.h5 --data data.npz --budget-share 0.7 -o recipe.json \\
            --plot sizes.png""",
    "demo": """
        rewriter demo
        rewriter demo --epochs 2 --output demo_files""",
}


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="rewriter",
        description="Turn a trained Keras model (tf_keras or Keras 3) into a quantization-aware "
        "one that can be fine-tuned, and that into an integer-only LiteRT file.",
        **_formatting("rewriter"),
    )
    top.add_argument("--version", action=_Version, help="show versions, for a bug report, and exit")
    shtab.add_argument_to(
        top, "--print-completion", help="print a completion script for this shell, and exit"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    inspect = _command(commands, "inspect", "show what happens to every BatchNormalization")
    inspect.add_argument("model", type=Path, metavar="MODEL", help=_MODEL_HELP)
    _loading(inspect)
    _json(inspect)

    convert = _command(commands, "convert", "make a quantization-aware model")
    convert.add_argument("model", type=Path, metavar="MODEL", help=_MODEL_HELP)
    _output(convert, "FILE", "where to write: .keras or .h5; tf_keras: also a SavedModel folder")
    convert.add_argument(
        "--calibrate", type=Path, metavar="DATA",
        help=f"set the ranges of the activations from data: {_DATA_HELP}",
    )  # fmt: skip
    _quantizing(convert)
    _sizes(convert)
    _data(convert, "x, x_train, x_test")
    _loading(convert)
    _json(convert)

    export = _command(commands, "export", "write an integer-only .tflite file")
    export.add_argument("model", type=Path, metavar="MODEL", help=_QAT_HELP)
    _output(export, "FILE", "the .tflite file to write")
    _sizes(export)
    types = export.add_argument_group("inputs and outputs")
    types.add_argument("--float-io", action="store_true", help="float inputs and outputs")
    default = {"input": "int8, or uint8 as the model has it", "output": "int8"}
    for what in ("input", "output"):
        types.add_argument(
            f"--{what}-type", choices=("int8", "uint8", "float32"),
            help=f"of all {what}s (default: {default[what]})",
        )  # fmt: skip
    _allow_float(export)
    export.add_argument(
        "--batch", type=_batch, default=1, metavar="N",
        help="samples that the file takes at a time, or `any`: 1 until the application resizes "
        "the input (default: %(default)s)",
    )  # fmt: skip
    export.add_argument(
        "--target", choices=TARGETS, help="what is to run the file; refuse what it would not"
    )
    export.add_argument(
        "--c-array", type=Path, metavar="FILE",
        help="also write it as a .c file, with a .h file beside it, to compile into a firmware",
    )  # fmt: skip
    _loading(export)
    _json(export)

    check = _command(commands, "check", "hold a .tflite file against the rules of a target")
    check.add_argument("file", type=Path, metavar="FILE", help="any .tflite file")
    check.add_argument("--target", choices=TARGETS, required=True, help="what is to run it")
    _json(check)

    verify = _command(commands, "verify", "compare a .tflite file with the trained model")
    verify.add_argument("model", type=Path, metavar="MODEL", help=_QAT_HELP)
    verify.add_argument("file", type=Path, metavar="FILE", help="what `rewriter export` wrote")
    verify.add_argument("--data", type=Path, required=True, metavar="DATA", help=_DATA_HELP)
    verify.add_argument(
        "--labels", metavar="NAME",
        help="the array of the .npz file with the classes: also report the accuracy",
    )  # fmt: skip
    verify.add_argument(
        "--kernels", choices=("xnnpack", "reference"), default="xnnpack",
        help="LiteRT's default kernels, or its reference kernels (default: %(default)s)",
    )  # fmt: skip
    verify.add_argument(
        "--min-identical", type=_share, metavar="SHARE",
        help="fail if, operator by operator, a smaller share (0 to 1) of any tensor's elements "
        "is identical",
    )  # fmt: skip
    verify.add_argument(
        "--min-snr", type=_number, metavar="DB",
        help="fail if the outputs of model and file are less than so many dB apart in signal to "
        "noise, or the file computes something else than the trained model",
    )  # fmt: skip
    _reporting(verify)
    _data(verify, "x, x_test, x_train")
    _loading(verify)
    _json(verify)

    quantize = _command(commands, "quantize", "the whole way: calibrate, fine-tune, export, verify")
    quantize.add_argument("model", type=Path, metavar="MODEL", help=_MODEL_HELP)
    _output(quantize, "FILE", "the .tflite file to write")
    quantize.add_argument(
        "--data", type=Path, required=True, metavar="DATA",
        help=f"to calibrate and train on: {_DATA_HELP}",
    )  # fmt: skip
    _training_labels(quantize)
    quantize.add_argument(
        "--test", type=Path, metavar="DATA",
        help="to report on (default: every tenth sample, which is then not trained on)",
    )  # fmt: skip
    _quantizing(quantize)
    training = _training(quantize, 0, "train so many (default: none)")
    training.add_argument(
        "--distill", action="store_true",
        help="train towards the trained model's outputs instead of the labels, as without any",
    )  # fmt: skip
    quantize.add_argument("--float-io", action="store_true", help="float inputs and outputs")
    _allow_float(quantize)
    quantize.add_argument(
        "--save-model", type=Path, metavar="FILE", help="keep the quantization-aware model, too"
    )
    _reporting(quantize)
    _data(quantize, "x, x_train, x_test", samples="all")
    _loading(quantize)
    _json(quantize)

    finetune = _command(commands, "finetune", "train a calibrated model, and keep the best epoch")
    finetune.add_argument("model", type=Path, metavar="MODEL", help=_QAT_HELP)
    _output(finetune, "FILE", "where to write: .keras or .h5; tf_keras: also a SavedModel folder")
    finetune.add_argument(
        "--data", type=Path, required=True, metavar="DATA", help=f"to train on: {_DATA_HELP}"
    )
    _training_labels(finetune)
    finetune.add_argument(
        "--teacher", type=Path, metavar="MODEL",
        help="train towards the outputs of this model (the one before `convert`) instead of labels",
    )  # fmt: skip
    _training(finetune, 5, "train so many (default: %(default)s)")
    _allow_float(finetune)
    _data(finetune, "x, x_train, x_test", samples="all")
    _loading(finetune)
    _json(finetune)
    sensitivity = _command(
        commands, "sensitivity", "show what each layer loses at few bits; propose a recipe"
    )
    sensitivity.add_argument("model", type=Path, metavar="MODEL", help=_MODEL_HELP)
    sensitivity.add_argument(
        "--data", type=Path, required=True, metavar="DATA",
        help=f"to calibrate and measure on: {_DATA_HELP}",
    )  # fmt: skip
    sensitivity.add_argument(
        "--labels", metavar="NAME",
        help="the array of the .npz file with the labels: measure the score, not only the noise; "
        "`folder`: each image's folder names its class",
    )  # fmt: skip
    sensitivity.add_argument(
        "--widths", type=_widths, default=(8, 4, 2), metavar="BITS",
        help="of kernels, that are tried (default: 8,4,2)",
    )  # fmt: skip
    budget = sensitivity.add_mutually_exclusive_group()
    budget.add_argument(
        "--budget-bytes", type=_positive, metavar="N",
        help="propose a recipe whose file has N bytes at most",
    )  # fmt: skip
    budget.add_argument(
        "--budget-share", type=_share, metavar="X",
        help="the same, as a share (0 to 1) of the file with kernels of 8 bits",
    )  # fmt: skip
    sensitivity.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="where to write the recipe: a .json file, for `rewriter convert --recipe`",
    )  # fmt: skip
    sensitivity.add_argument(
        "--plot", type=Path, metavar="FILE",
        help="draw bytes against quality of all that was measured; needs matplotlib",
    )  # fmt: skip
    sensitivity.add_argument(
        "--recipe", metavar="RECIPE",
        help=f"all but the widths: one of {', '.join(RECIPES)}, or a JSON file",
    )  # fmt: skip
    _allow_float(sensitivity)
    _data(sensitivity, "x, x_train, x_test")
    _loading(sensitivity)
    _json(sensitivity)

    demo = _command(commands, "demo", "the whole way on handwritten digits, in about a minute")
    demo.add_argument(
        "--epochs", type=_positive, default=3, metavar="N",
        help="of fine-tuning (default: %(default)s)",
    )  # fmt: skip
    demo.add_argument("--output", type=Path, metavar="DIR", help="keep the files in this folder")
    for command in commands.choices.values():
        for action in command._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return top


_MODEL_HELP = "a SavedModel folder, a .keras file or an .h5 file"


class _Version(argparse.Action):
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


def _formatting(command: str) -> dict:
    examples = textwrap.indent(textwrap.dedent(_EXAMPLES[command]).strip(), "  ")
    return {
        "epilog": f"examples:\n{examples}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _command(commands: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", **_formatting(name)
    )
    command.add_argument("--debug", action="store_true", help="show tracebacks and all logging")
    return command


def _output(command: argparse.ArgumentParser, metavar: str, text: str) -> None:
    command.add_argument("-o", "--output", type=Path, required=True, metavar=metavar, help=text)


def _sizes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--input-shape", type=_shape, action="append", default=[], metavar="SIZES",
        help="sizes of an input that the model leaves open, without the batch: 224,224,3; for "
        "several inputs NAME=224,224,3, once for each",
    )  # fmt: skip


def _shape(text: str) -> tuple[str | None, tuple[int, ...]]:
    name, equals, sizes = text.rpartition("=")
    try:
        found = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"not sizes such as 224,224,3: {sizes!r}") from None
    return (name if equals else None), found


def _quantizing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--recipe", metavar="RECIPE",
        help=f"how to quantize: one of {', '.join(RECIPES)}, or a JSON file",
    )  # fmt: skip
    command.add_argument(
        "--method", choices=CALIBRATIONS,
        help="how ranges are made of what was seen: all of it, 99.99 %% of it on either side, or "
        "what gives the smallest squared error or divergence (default: what the recipe says)",
    )  # fmt: skip


def _training_labels(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--labels", metavar="NAME",
        help="the array or feature with the labels: classes, or numbers of the outputs' shape; "
        "`folder`: each image's folder names its class",
    )  # fmt: skip


def _training(command: argparse.ArgumentParser, epochs: int, text: str) -> argparse._ArgumentGroup:
    group = command.add_argument_group("fine-tuning")
    group.add_argument(
        "--epochs", type=_count, default=epochs, metavar="N",
        help=f"{text}; the best by the exported file's score is taken",
    )  # fmt: skip
    group.add_argument(
        "--learning-rate", type=_number, default=1e-4, metavar="X",
        help="of Adam at the start; it falls to 0 as a cosine (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--batch-size", type=_positive, default=32, metavar="N",
        help="samples in a step (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--resume", type=Path, metavar="DIR",
        help="keep each epoch in this folder, and go on from what is there; removed at the end",
    )  # fmt: skip
    group.add_argument("--seed", type=_count, default=0, metavar="N", help="of all that is random")
    return group


def _allow_float(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-float", action="store_true",
        help="compute layers without an integer form in float, instead of refusing",
    )  # fmt: skip


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="write JSON to stdout")


def _reporting(command: argparse.ArgumentParser) -> None:
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


def _loading(command: argparse.ArgumentParser) -> None:
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


def _data(command: argparse.ArgumentParser, preferred: str, samples: int | str = 512) -> None:
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
        "--samples", type=_samples, default=samples, metavar="N",
        help="use so many, spread over the data, or `all` (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--scale", type=_number, default=1.0, metavar="X",
        help="factor on the stored values, such as 1/255 (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--offset", type=_number, default=0.0, metavar="X",
        help="added after the factor (default: 0)",
    )  # fmt: skip


def _number(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from None


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"not between 0 and 1: {text!r}")
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a positive whole number: {text!r}")
    return int(text)


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _widths(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _batch(text: str) -> int | None:
    return None if text == "any" else _positive(text)


def _samples(text: str) -> int | None:
    return None if text == "all" else _positive(text)
