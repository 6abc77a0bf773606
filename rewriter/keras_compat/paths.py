"""Where a layer stands, which is how the names and paths of its variables begin.

A variable of Keras 3 has a path, ``encoder/conv/kernel``, made of the layers that were being built
or called around its own; in tf_keras its name is made so. ``exclude_from_weight_decay``,
``OptimizerMap``, ``Muon(exclude_layers=...)`` and functions given to ``MultiOptimizer`` choose by
them, and take a default where nothing matches. So a layer of ours that takes the place of another
stands where that one stood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_PARENT = "_parent_path"  # Keras 3's own name: None until the layer is built or called
_GIVEN = "_rewriter_place"  # what was given for a layer, and not found while building
_PARTS = ("host", "batch_norm", "norm")  # of a layer of ours: those with weights of the original


def stand_like(new: Any, original: Any, own: Sequence[Any]) -> None:
    """Have the variables of ``new``, which is not built yet, begin as those of ``original``.

    Args:
      new: the layer that takes the place of ``original``.
      original: a layer, or anything else, which stands nowhere.
      own: the variables of ``original`` that no other layer holds; tf_keras names them after it.
    """
    if hasattr(new, _PARENT):
        _stand(new, getattr(original, _PARENT, None))
    elif own:
        _stand(new, own[0].name.rpartition("/")[0] or None)


def given(layer: Any) -> str:
    """What :func:`stand_like` gave a layer; empty if nothing."""
    return getattr(layer, _GIVEN, None) or ""


def scope(layer: Any) -> str:
    """The TensorFlow name scope in which tf_keras makes the variables of a part of ours."""
    return given(layer) or str(layer.name)


def kept(layer: Any) -> dict[str, str]:
    """The places that :func:`stand_like` gave a layer of ours and its parts, for its file.

    Returns:
      Places by the attribute that holds the part; that of the layer itself by ``"self"``: of
      Keras 3 the path of what is around the layer, of tf_keras the scope of its variables.
    """
    places = {name: getattr(part, _GIVEN, None) for name, part in _placed(layer).items()}
    return {name: place for name, place in places.items() if place is not None}


def put(layer: Any, places: Mapping[str, str]) -> None:
    """Give a layer that is not built yet what :func:`kept` returned; ValueError for anything else.

    A file from before there were places has none.
    """
    if not isinstance(places, Mapping) or not all(isinstance(p, str) for p in places.values()):
        raise ValueError(f"'places' must map parts of a layer to paths. Received: {places!r}.")
    for name, part in _placed(layer).items():
        _stand(part, places.get(name))


def _placed(layer: Any) -> dict[str, Any]:
    return {"self": layer, **{name: getattr(layer, name, None) for name in _PARTS}}


def _stand(layer: Any, place: str | None) -> None:
    if layer is None or place is None:
        return
    setattr(layer, _GIVEN, place)
    if hasattr(layer, _PARENT):
        setattr(layer, _PARENT, place)
