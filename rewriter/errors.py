"""The errors that users of rewriter meet, and how they quote those of others."""

from __future__ import annotations

import re

_COLOURS = re.compile("\x1b\\[[0-9;]*m")


class RewriterError(ValueError):
    """Base of all errors raised on purpose: says what, where, what was received, what to do."""


class UnsupportedModelError(RewriterError):
    """The model, or a layer of it, cannot be rewritten."""


class LoadError(RewriterError):
    """A file could not be read as a Keras model or as data."""


class RewriterWarning(UserWarning):
    """Something that was done, but may not be what was meant; the command line shows it."""


class SaveError(RewriterError):
    """A file could not hold a function of the model; the message names the layer."""


class RecipeError(RewriterError):
    """A recipe has a bad field; the message names it."""


class CalibrationError(RewriterError):
    """Calibration data does not fit the model, or ranges are missing."""


class ExportError(RewriterError):
    """The model cannot become an integer-only file; the message names the layer."""


class VerificationError(RewriterError):
    """A file cannot be compared with the model."""


def short(error: BaseException) -> str:
    """The first line of an error's message, cut to 300 characters; its type where it has none.

    Of Keras's errors from inside a call, the line that says what was wrong, without its colours.
    """
    plain = _COLOURS.sub("", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        del lines[0]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
