"""The commands of ``rewriter`` and their arguments: what a user reads with ``--help``.

Outside of the package, as ``rewriter_command`` is and for the same reason.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import shtab

import rewriter_options as options

_Commands = argparse._SubParsersAction

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
    top.add_argument(
        "--version", action=options.Version, help="show versions, for a bug report, and exit"
    )
    shtab.add_argument_to(
        top, "--print-completion", help="print a completion script for this shell, and exit"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _inspect,
        _convert,
        _export,
        _check,
        _verify,
        _quantize,
        _finetune,
        _sensitivity,
        _demo,
    ):
        add(commands)
    for command in commands.choices.values():
        for action in command._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return top


def _inspect(commands: _Commands) -> None:
    command = _command(commands, "inspect", "show what happens to every BatchNormalization")
    command.add_argument("model", type=Path, metavar="MODEL", help=options.MODEL_HELP)
    options.loading(command)
    options.json(command)


def _convert(commands: _Commands) -> None:
    command = _command(commands, "convert", "make a quantization-aware model")
    command.add_argument("model", type=Path, metavar="MODEL", help=options.MODEL_HELP)
    options.output(
        command, "FILE", "where to write: .keras or .h5; tf_keras: also a SavedModel folder"
    )
    command.add_argument(
        "--calibrate", type=Path, metavar="DATA",
        help=f"set the ranges of the activations from data: {options.DATA_HELP}",
    )  # fmt: skip
    options.quantizing(command)
    options.sizes(command)
    options.data(command, "x, x_train, x_test")
    options.loading(command)
    options.json(command)


def _export(commands: _Commands) -> None:
    command = _command(commands, "export", "write an integer-only .tflite file")
    command.add_argument("model", type=Path, metavar="MODEL", help=options.QAT_HELP)
    options.output(command, "FILE", "the .tflite file to write")
    options.sizes(command)
    types = command.add_argument_group("inputs and outputs")
    types.add_argument("--float-io", action="store_true", help="float inputs and outputs")
    default = {"input": "int8, or uint8 as the model has it", "output": "int8"}
    for what in ("input", "output"):
        types.add_argument(
            f"--{what}-type", choices=("int8", "uint8", "float32"),
            help=f"of all {what}s (default: {default[what]})",
        )  # fmt: skip
    options.allow_float(command)
    command.add_argument(
        "--batch", type=options.batch, default=1, metavar="N",
        help="samples that the file takes at a time, or `any`: 1 until the application resizes "
        "the input (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--target",
        choices=options.TARGETS,
        help="what is to run the file; refuse what it would not",
    )
    command.add_argument(
        "--c-array", type=Path, metavar="FILE",
        help="also write it as a .c file, with a .h file beside it, to compile into a firmware",
    )  # fmt: skip
    options.loading(command)
    options.json(command)


def _check(commands: _Commands) -> None:
    command = _command(commands, "check", "hold a .tflite file against the rules of a target")
    command.add_argument("file", type=Path, metavar="FILE", help="any .tflite file")
    command.add_argument(
        "--target", choices=options.TARGETS, required=True, help="what is to run it"
    )
    options.json(command)


def _verify(commands: _Commands) -> None:
    command = _command(commands, "verify", "compare a .tflite file with the trained model")
    command.add_argument("model", type=Path, metavar="MODEL", help=options.QAT_HELP)
    command.add_argument("file", type=Path, metavar="FILE", help="what `rewriter export` wrote")
    command.add_argument("--data", type=Path, required=True, metavar="DATA", help=options.DATA_HELP)
    command.add_argument(
        "--labels", metavar="NAME",
        help="the array of the .npz file with the classes: also report the accuracy",
    )  # fmt: skip
    command.add_argument(
        "--kernels", choices=("xnnpack", "reference"), default="xnnpack",
        help="LiteRT's default kernels, or its reference kernels (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--min-identical", type=options.share, metavar="SHARE",
        help="fail if, operator by operator, a smaller share (0 to 1) of any tensor's elements "
        "is identical",
    )  # fmt: skip
    command.add_argument(
        "--min-snr", type=options.number, metavar="DB",
        help="fail if the outputs of model and file are less than so many dB apart in signal to "
        "noise, or the file computes something else than the trained model",
    )  # fmt: skip
    options.reporting(command)
    options.data(command, "x, x_test, x_train")
    options.loading(command)
    options.json(command)


def _quantize(commands: _Commands) -> None:
    command = _command(commands, "quantize", "the whole way: calibrate, fine-tune, export, verify")
    command.add_argument("model", type=Path, metavar="MODEL", help=options.MODEL_HELP)
    options.output(command, "FILE", "the .tflite file to write")
    command.add_argument(
        "--data", type=Path, required=True, metavar="DATA",
        help=f"to calibrate and train on: {options.DATA_HELP}",
    )  # fmt: skip
    options.training_labels(command)
    command.add_argument(
        "--test", type=Path, metavar="DATA",
        help="to report on (default: every tenth sample, which is then not trained on)",
    )  # fmt: skip
    options.quantizing(command)
    training = options.training(command, 0, "train so many (default: none)")
    training.add_argument(
        "--distill", action="store_true",
        help="train towards the trained model's outputs instead of the labels, as without any",
    )  # fmt: skip
    command.add_argument("--float-io", action="store_true", help="float inputs and outputs")
    options.allow_float(command)
    command.add_argument(
        "--save-model", type=Path, metavar="FILE", help="keep the quantization-aware model, too"
    )
    options.reporting(command)
    options.data(command, "x, x_train, x_test", taken="all")
    options.loading(command)
    options.json(command)


def _finetune(commands: _Commands) -> None:
    command = _command(commands, "finetune", "train a calibrated model, and keep the best epoch")
    command.add_argument("model", type=Path, metavar="MODEL", help=options.QAT_HELP)
    options.output(
        command, "FILE", "where to write: .keras or .h5; tf_keras: also a SavedModel folder"
    )
    command.add_argument(
        "--data", type=Path, required=True, metavar="DATA", help=f"to train on: {options.DATA_HELP}"
    )
    options.training_labels(command)
    command.add_argument(
        "--teacher", type=Path, metavar="MODEL",
        help="train towards the outputs of this model (the one before `convert`) instead of labels",
    )  # fmt: skip
    options.training(command, 5, "train so many (default: %(default)s)")
    options.allow_float(command)
    options.data(command, "x, x_train, x_test", taken="all")
    options.loading(command)
    options.json(command)


def _sensitivity(commands: _Commands) -> None:
    command = _command(
        commands, "sensitivity", "show what each layer loses at few bits; propose a recipe"
    )
    command.add_argument("model", type=Path, metavar="MODEL", help=options.MODEL_HELP)
    command.add_argument(
        "--data", type=Path, required=True, metavar="DATA",
        help=f"to calibrate and measure on: {options.DATA_HELP}",
    )  # fmt: skip
    command.add_argument(
        "--labels", metavar="NAME",
        help="the array of the .npz file with the labels: measure the score, not only the noise; "
        "`folder`: each image's folder names its class",
    )  # fmt: skip
    command.add_argument(
        "--widths", type=options.widths, default=(8, 4, 2), metavar="BITS",
        help="of kernels, that are tried (default: 8,4,2)",
    )  # fmt: skip
    budget = command.add_mutually_exclusive_group()
    budget.add_argument(
        "--budget-bytes", type=options.positive, metavar="N",
        help="propose a recipe whose file has N bytes at most",
    )  # fmt: skip
    budget.add_argument(
        "--budget-share", type=options.share, metavar="X",
        help="the same, as a share (0 to 1) of the file with kernels of 8 bits",
    )  # fmt: skip
    command.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="where to write the recipe: a .json file, for `rewriter convert --recipe`",
    )  # fmt: skip
    command.add_argument(
        "--plot", type=Path, metavar="FILE",
        help="draw bytes against quality of all that was measured; needs matplotlib",
    )  # fmt: skip
    command.add_argument(
        "--recipe", metavar="RECIPE",
        help=f"all but the widths: one of {', '.join(options.RECIPES)}, or a JSON file",
    )  # fmt: skip
    options.allow_float(command)
    options.data(command, "x, x_train, x_test")
    options.loading(command)
    options.json(command)


def _demo(commands: _Commands) -> None:
    command = _command(commands, "demo", "the whole way on handwritten digits, in about a minute")
    command.add_argument(
        "--epochs", type=options.positive, default=3, metavar="N",
        help="of fine-tuning (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--output", type=Path, metavar="DIR", help="keep the files in this folder")


def _formatting(command: str) -> dict:
    examples = textwrap.indent(textwrap.dedent(_EXAMPLES[command]).strip(), "  ")
    return {
        "epilog": f"examples:\n{examples}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _command(commands: _Commands, name: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", **_formatting(name)
    )
    options.showing(command)
    return command
