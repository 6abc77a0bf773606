"""What a ``MultiHeadAttention`` computes, by layers and functions that are saved with a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

# Places of a mask, which stand in a model's configuration.
_MOST_PLACES = 512 * 512


def hidden(
    scores: Any, rows: int | None, columns: int | None, causal: bool, mask: Any = None
) -> np.ndarray:
    """What is added to scores for a mask that is known: 0, or a large negative number.

    Args:
      scores: a symbolic tensor of shape (..., rows, columns).
      rows, columns: its sizes, which it may leave open.
      causal: whether no row sees a later column.
      mask: constants, true where a row sees a column, of shape (rows, columns) or
        (1, rows, columns); None: all do.

    Raises:
      NotImplementedError: the mask is a tensor or differs for samples, or sizes are not known, or
        too large for a configuration.
    """
    if rows is None or columns is None or rows * columns > _MOST_PLACES:
        raise NotImplementedError
    sees = np.tri(rows, columns, dtype=bool) if causal else np.ones((rows, columns), bool)
    if mask is not None:
        known = np.asarray(mask).astype(bool)  # raises NotImplementedError for symbolic tensors
        if known.shape not in ((rows, columns), (1, rows, columns)):
            raise NotImplementedError
        sees &= known.reshape(rows, columns)
    # As the stock layers have it; exp() makes 0 of both.
    least = -3e4 if "float16" in str(scores.dtype) else -1e9
    shape = [1] * (len(scores.shape) - 2) + [rows, columns]
    return np.where(sees, 0.0, least).astype(np.float32).reshape(shape)


def attend(layer: Any, function: Callable[[str], Any]) -> Callable[..., Any]:
    """The call of an attention over all axes between the batch and the channels, as one axis.

    Args:
      layer: of either Keras, built.
      function: the flavour's functions by name.

    Returns:
      a function with the arguments of the layer's ``call``, on symbolic tensors of static sizes;
      it raises NotImplementedError for masks but those of a sequence that are known, and where
      other axes are attended over.
    """
    names = ("reshape", "transpose", "matmul", "add")
    reshape, transpose, matmul, add = map(function, names)
    heads = [0, 2, 1, 3]

    def flat(x: Any, places: tuple[int, ...]) -> Any:
        """(batch, places, heads, channels); a projection may leave the sizes of places open."""
        return x if len(places) == 1 else reshape(x, (-1, math.prod(places), *x.shape[-2:]))

    def call(
        query: Any,
        value: Any,
        key: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
        **masks: Any,
    ) -> Any:
        whole = tuple(range(1, len(query.shape) - 1))
        known = use_causal_mask or attention_mask is not None
        masked = any(m is not None for m in masks.values())
        if masked or (known and whole != (1,)) or tuple(layer._attention_axes) != whole:
            raise NotImplementedError
        rows, columns = (tuple(x.shape)[1:-1] for x in (query, value))
        asked = flat(layer._query_dense(query), rows) * (float(layer._key_dim) ** -0.5)
        keys = flat(layer._key_dense(value if key is None else key), columns)
        products = matmul(transpose(asked, heads), transpose(keys, [0, 2, 3, 1]))
        if known:
            places = hidden(products, rows[0], columns[0], use_causal_mask, attention_mask)
            products = add(products, places)
        scores = layer._softmax(products) if whole == (1,) else function("softmax")(products)
        values = transpose(flat(layer._value_dense(value), columns), heads)
        given = transpose(matmul(layer._dropout_layer(scores), values), heads)
        if whole != (1,):
            given = reshape(given, (-1, *rows, *given.shape[-2:]))
        output = layer._output_dense(given)
        if not return_attention_scores:
            return output
        sizes = (-1, scores.shape[1], *rows, *columns)
        return output, scores if whole == (1,) else reshape(scores, sizes)

    return call
