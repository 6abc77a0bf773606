"""What a ``MultiHeadAttention`` computes, by layers and functions that are saved with a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def attend(layer: Any, function: Callable[[str], Any]) -> Callable[..., Any]:
    """The call of an attention over all axes between the batch and the channels, as one axis.

    Args:
      layer: of either Keras, built.
      function: the flavour's functions by name.

    Returns:
      a function with the arguments of the layer's ``call``, on symbolic tensors of static sizes;
      it raises NotImplementedError for masks, and where other axes are attended over.
    """
    reshape, transpose, matmul = map(function, ("reshape", "transpose", "matmul"))
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
        masked = use_causal_mask or any(m is not None for m in (attention_mask, *masks.values()))
        if masked or tuple(layer._attention_axes) != whole:
            raise NotImplementedError
        rows, columns = (tuple(x.shape)[1:-1] for x in (query, value))
        asked = flat(layer._query_dense(query), rows) * (float(layer._key_dim) ** -0.5)
        keys = flat(layer._key_dense(value if key is None else key), columns)
        products = matmul(transpose(asked, heads), transpose(keys, [0, 2, 3, 1]))
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
