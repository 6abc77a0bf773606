"""Where bytes of others come in: whatever reading them raises becomes one error of ours.

Parsers of damaged files raise nearly everything: which exceptions those are cannot be listed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from rewriter.errors import LoadError, RecipeError, RewriterError, VerificationError, short


@contextlib.contextmanager
def _boundary(cls: type[RewriterError], what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except cls:
        raise
    except RewriterError as error:
        raise cls(str(error)) from error
    except MemoryError as error:
        raise cls(f"{what}: it does not fit into memory.") from error
    except OSError as error:
        if error.errno is not None:  # of the operating system, which says what is wrong
            raise cls(f"{what}: {error.strerror}.") from error
        raise cls(f"{what}: it is damaged or incomplete ({short(error)}). {remedy}") from error
    except Exception as error:  # whatever a parser raises
        said = short(error)
        said = said if said == type(error).__name__ else f"{type(error).__name__}: {said}"
        raise cls(f"{what}: it is damaged or incomplete ({said}). {remedy}") from error


def model(path: object) -> contextlib.AbstractContextManager[None]:
    """Within, a model's file is read: raises LoadError only."""
    return _boundary(LoadError, f"{str(path)!r} cannot be read", "Save or copy it again.")


def data(path: object) -> contextlib.AbstractContextManager[None]:
    """Within, data are read from a file: raises LoadError only."""
    expected = "Expected an .npz or .npy file of numbers, a TFRecord file or a folder of images."
    return _boundary(LoadError, f"{str(path)!r} cannot be read as data", expected)


def recipe(what: object) -> contextlib.AbstractContextManager[None]:
    """Within, a recipe is made of parsed JSON: raises RecipeError only."""
    return _boundary(RecipeError, f"{what} cannot be read", "Write it with Recipe.to_json.")


def litert(what: object) -> contextlib.AbstractContextManager[None]:
    """Within, a LiteRT file is read: raises VerificationError only."""
    return _boundary(VerificationError, f"{what} cannot be read", "Export it again.")


def litert_bytes(path: str | os.PathLike[str]) -> bytes:
    """What a LiteRT file holds.

    Raises:
      VerificationError: it is something else, by its first bytes.
      OSError: it cannot be read.
    """
    content = Path(path).read_bytes()
    if content[4:8] != b"TFL3":
        raise VerificationError(
            f"{str(path)!r} is not a LiteRT file: the identifier 'TFL3' is missing. "
            f"Received: {len(content)} bytes beginning with {content[:8]!r}."
        )
    return content
