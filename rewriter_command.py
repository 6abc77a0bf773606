"""The command ``rewriter``: how it is run, and how errors and warnings are shown.

It lies outside the package, because to import that is to import TensorFlow: after ``import
rewriter`` the Kerases must know our layers. That takes seconds and writes to stderr; ``--help`` and
usage errors need not wait for it, and what it writes there can be kept from drowning the one line
that matters.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

import rewriter_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command in this process.

    Returns:
      The exit code: 0, or 1 after one line about an error on stderr. (Usage errors raise
      ``SystemExit(2)``, as argparse does.)
    """
    args = rewriter_parser.parser().parse_args(argv)
    with contextlib.nullcontext() if args.debug else _quiet_libraries():
        try:
            from rewriter.cli import commands
            from rewriter.errors import RewriterError, RewriterWarning
        except ValueError as error:  # a value of the environment that is none
            if args.debug:
                raise
            return _fail(error)

        if not args.debug:
            warnings.simplefilter("always", RewriterWarning)
        try:
            commands.COMMANDS[args.command](args)
        except (RewriterError, OSError) as error:
            if args.debug:
                raise
            return _fail(error)
    return 0


def _fail(error: Exception) -> int:
    sys.stderr.write(f"rewriter: {_coloured('error', 31)}: {_one_line(error)}\n")
    return 1


def run() -> None:
    """The console script: :func:`main` without what TensorFlow's C++ parts write to stderr."""
    # Paths and names may have letters that the stream has none for, as in a Latin-1 or ASCII
    # locale: they are escaped. The work is done when its outcome is shown.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if "--debug" in sys.argv[1:]:
        sys.exit(main())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Some of it is written before TensorFlow reads that variable. Python's own stderr stays.
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130  # as shells report SIGINT
    sys.exit(code)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """No warnings of the libraries; errors are raised, not logged."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.showwarning = _show_warning
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """In one line, as errors are; those of the libraries are ignored before."""
    text = " ".join(str(message).split())
    sys.stderr.write(f"rewriter: {_coloured('warning', 33)}: {text}\n")


def _coloured(word: str, colour: int) -> str:
    """A word in a colour of ANSI's on a terminal; plain elsewhere, and where NO_COLOR is set."""
    plain = (
        not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    )
    return word if plain else f"\033[{colour}m{word}\033[0m"


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename!r}: {error.strerror}."
    return " ".join(text.split()) or type(error).__name__
