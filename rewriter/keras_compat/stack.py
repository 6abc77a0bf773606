"""Room on Python's stack for Keras, which walks the graph of a model by recursion."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_FRAMES = 8  # of a call of a layer, at most: both Kerases take fewer


@contextlib.contextmanager
def room_for(calls: int) -> Iterator[None]:
    """Within: models of ``calls`` calls, one after the other, can be made.

    A rewritten model is deeper than the original one, which may have been close to the limit.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + _FRAMES * calls)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
