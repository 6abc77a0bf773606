"""What the arguments of commands stand for: models, recipes, sizes, data."""

from __future__ import annotations

import importlib
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewriter.checking import probe
from rewriter.cli import data, datasets
from rewriter.errors import LoadError, RewriterError
from rewriter.files import outputs
from rewriter.reading.load import load_model
from rewriter.rewriting.recipe import Recipe


def model(args: Namespace, path: Path | None = None) -> Any:
    """The model of the command, or the one at ``path``.

    Raises:
      LoadError: a module of ``--import`` or the model cannot be loaded.
    """
    path = args.model if path is None else path
    if args.imports and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where console scripts, unlike python -m, do not look
    for name in args.imports:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module of the user's may raise anything
            raise LoadError(f"--import {name}: {type(error).__name__}: {error}.") from error
    probe.check(path)
    return load_model(
        path,
        flavour=args.keras,
        allow_lambda=args.allow_lambda,
        signature=args.signature,
    )


def recipe(given: str | None) -> tuple[Recipe | None, Path | None]:
    """The recipe of that name or in that file, and the file."""
    if given is None:
        return None, None
    file = Path(given)
    if file.exists() or file.suffix:
        return Recipe.load(file), file
    return Recipe.named(given), None


def function(option: str, given: str | None) -> Any:
    """The user's function of ``module:function``; a name of Keras's, or None, is itself.

    Raises:
      LoadError: there is no such function, or its module cannot be imported.
    """
    if given is None or not datasets.is_function(Path(given)):
        return given
    return datasets.function(given, f"--{option} {given}")


def input_shape(args: Namespace) -> Any:
    """Of the only input, or by name; None if none was given.

    Raises:
      RewriterError: for several inputs, sizes without a name, or a name twice.
    """
    if not args.input_shape:
        return None
    named = dict(args.input_shape)
    if len(args.input_shape) == 1 and None in named:
        return named[None]
    if None in named or len(named) < len(args.input_shape):
        raise RewriterError("--input-shape of several inputs: give each once, as NAME=SIZES.")
    return named


def source(
    args: Namespace, path: Path, preferred: tuple[str, ...], labels: str | None = None
) -> data.Source:
    """Where the data of a command is, and how it is read."""
    return data.Source(
        path,
        array=args.array,
        labels=labels,
        scale=args.scale,
        offset=args.offset,
        samples=args.samples,
        preferred=preferred,
        features=args.features,
    )


def refuse_output(args: Namespace, suffixes: tuple[str, ...], what: str, *more: Any) -> None:
    """Before the work is done: outputs that would take the place of something else.

    Raises:
      RewriterError: such an output.
    """
    refusal = outputs.refusal(args.output, suffixes, what, (args.model, *more))
    if refusal is not None:
        raise RewriterError(refusal)


def say(args: Namespace) -> Callable[[str], None]:
    """What shows a line: nothing where JSON, or nothing, was asked for."""
    if args.quiet or getattr(args, "json", False):
        return lambda text: None
    if not args.verbose:
        return lambda text: print(text, flush=True)
    start = time.monotonic()
    return lambda text: print(f"[{time.monotonic() - start:6.1f} s] {text}", flush=True)


def progress(args: Namespace) -> bool:
    """Whether to show progress bars: on a terminal, or where it was asked for."""
    return not args.quiet and (args.verbose or sys.stderr.isatty())
