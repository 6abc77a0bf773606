"""What comes with the extra ``report``: found out before the work, not after."""

from __future__ import annotations

import importlib.util

from rewriter.errors import RewriterError

_NEEDED = ("jinja2", "matplotlib")


def require() -> None:
    """Check that a report can be written, without importing what writes it.

    Raises:
      RewriterError: a package is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RewriterError(
            f"A report needs {' and '.join(missing)}, which is not installed. Run "
            "pip install 'rewriter[report]'."
        )
