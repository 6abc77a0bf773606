"""Stock layers and operations that are others one after the other: read as those.

An attention layer is four projections, two products and a softmax between them; ``TimeDistributed``
is the layer in it on a batch of steps. Each row gives a function that makes these calls on symbolic
tensors, and computes what the layer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from rewriter.keras_compat import Flavour
from rewriter.keras_compat.attention import hidden
from rewriter.lifting.block import ClosedError
from rewriter.reading import inside, recurrent
from rewriter.reading.graph import Call
from rewriter.reading.operations import RANDOM_IN_INFERENCE, is_floating

Function = Callable[..., Any]

# Steps that are called one by one, each with operators of its own in the file.
_MOST_STEPS = 32


def mark(flavour: Flavour, layer: Any, calls: Iterable[Call]) -> None:
    """Note in the calls that a layer is whether each is one of several steps."""
    for call in calls:
        call.repeated |= flavour.class_name(layer) in recurrent.LAYERS


def function(flavour: Flavour, call: Call, made: dict[Any, Any] | None) -> Function | None:
    """What makes the calls that ``call`` is; None if it is one of a kind, or none of these.

    Of one of these that has no such form, the call gets the reason.

    Args:
      flavour, call: the call.
      made: the layers that were made of the same layer before; new ones are added. None: recurrent
        layers stay as they are.
    """
    if flavour.class_name(call.layer) in recurrent.LAYERS:
        try:
            return recurrent.function(flavour, call, made)
        except ClosedError as error:
            call.closed = str(error)
            return None
    maker = _MAKERS.get(flavour.class_name(call.layer))
    tensors = (*call.dtypes, *call.input_dtypes)
    layer = call.layer
    own = flavour.own_variables(layer) if flavour.is_layer(layer) else []
    weights = [each for each in own if is_floating(tf.as_dtype(each.dtype).name)]  # but no seeds
    if maker is _weighted and weights and layer.dropout:
        call.closed = (
            f"it has dropout={layer.dropout} and a variable, a scale of its scores. Build it with "
            "one of the two"
        )
    if (
        maker is None
        or call.masked
        or not all(map(is_floating, tensors))
        or getattr(layer, "activity_regularizer", None) is not None
        or any(dtype != getattr(layer, "compute_dtype", dtype) for dtype in call.input_dtypes)
        or weights
    ):
        return None
    return maker(flavour, call)


def _weighted(flavour: Flavour, call: Call) -> Function | None:
    """Its own ``call``; where that drops weights in training, a layer that does so in its place."""
    layer, rate = call.layer, call.layer.dropout
    if not rate and not call.kwargs.get("use_causal_mask"):
        return layer.call
    if rate and inside.own_flag(flavour, call):
        call.closed = RANDOM_IN_INFERENCE
        return None
    softmax, matmul, add = map(flavour.function, ("softmax", "matmul", "add"))
    layers = flavour.keras.layers
    drop = layers.Dropout(rate, name=f"{layer.name}_dropout") if rate else lambda weights: weights

    def attend(
        inputs: Any,
        mask: Any = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
        **options: Any,
    ) -> Any:
        if any(each is not None for each in tf.nest.flatten(mask)):
            raise NotImplementedError
        query, value, *key = inputs
        scores = layer._calculate_scores(query, *key or [value])
        if use_causal_mask:
            scores = add(scores, hidden(scores, query.shape[1], value.shape[1], True))
        weights = drop(softmax(scores))
        output = matmul(weights, value)
        return (output, weights) if return_attention_scores else output

    return attend


def _attention(flavour: Flavour, call: Call) -> Function | None:
    ranks = {len(shape) for shape in call.input_shapes}
    static = all(None not in shape[1:] for shape in call.input_shapes)
    fits = len(ranks) == 1 and (ranks == {3} or (min(ranks) > 3 and static))
    return flavour.attention(call.layer, min(ranks)) if fits else None


def _scaled_product(flavour: Flavour, call: Call) -> Function | None:
    """``softmax(q k / sqrt(d)) v`` for every head (Vaswani et al. 2017, arXiv:1706.03762)."""
    layer, shapes = call.layer, call.input_shapes
    if (
        layer.attn_logits_soft_cap is not None
        or len(call.refs) != 3
        or {len(shape) for shape in shapes} != {4}
    ):
        return None
    if len({shape[2] for shape in shapes}) != 1 or shapes[1][3] is None:
        return None  # heads that share keys
    width = shapes[1][3]
    names = ("einsum", "softmax", "multiply", "add")
    einsum, softmax, multiply, add = map(flavour.function, names)

    def attend(
        query: Any, key: Any, value: Any, bias: Any = None, mask: Any = None, scale: Any = None
    ) -> Any:
        if bias is not None or mask is not None:
            raise NotImplementedError
        given = 1 / math.sqrt(width) if scale is None else scale
        scores = multiply(einsum("btnh,bsnh->bnts", query, key), given)
        if layer.is_causal:
            scores = add(scores, hidden(scores, query.shape[1], key.shape[1], True))
        return einsum("bnts,bsnh->btnh", softmax(scores), value)

    return attend


def _norm(flavour: Flavour, call: Call) -> Function | None:
    """The length of vectors: by the root of the sum of squares, or by the sum, or the largest."""
    names = ("square", "sqrt", "abs", "sum", "max")
    square, root, size, total, most = map(flavour.function, names)

    def norm(tensor: Any, ord: Any = None, axis: Any = None, keepdims: Any = None) -> Any:
        kind = "euclidean" if ord is None or ord == 2 else ord
        axes = [axis] if isinstance(axis, int) else list(axis or ())
        if not axes or (len(axes) > 1 and (ord not in (None, "euclidean", "fro"))):
            raise NotImplementedError
        options = {"axis": tuple(axes), "keepdims": bool(keepdims)}
        if kind in ("euclidean", "fro"):
            return root(total(square(tensor), **options))
        if kind not in (1, math.inf):
            raise NotImplementedError
        return (total if kind == 1 else most)(size(tensor), **options)

    own = {k: getattr(call.layer, k) for k in ("ord", "axis", "keepdims") if hasattr(call.layer, k)}
    return lambda *args, **kwargs: norm(*args[:4], **{**own, **_without_name(kwargs)})


def _without_name(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "name"}


def _cosine(flavour: Flavour, call: Call) -> Function | None:
    """A product of vectors of length 1."""
    layer, layers = call.layer, flavour.keras.layers
    if not layer.normalize or {*map(len, call.input_shapes)} != {2}:
        return None
    unit = layers.UnitNormalization(axis=-1, name=f"{layer.name}_unit")
    product = layers.Dot(layer.axes, name=layer.name)
    return lambda inputs, **options: product([unit(each) for each in inputs])


def _every_step(flavour: Flavour, call: Call) -> Function | None:
    """The layer on steps and samples together.

    Keras 3 calls the layer for one step after the other, which makes a difference to a batch
    normalization: each call has statistics of its own. There it is called so, too. (tf_keras runs a
    model twice to find out its mask, and updates moving statistics both times; here they are
    updated once.)
    """
    layer, shape = call.layer, call.input_shapes[0]
    if len(call.refs) != 1 or len(shape) < 3 or None in shape[1:] or len(call.shapes) != 1:
        return None
    inner, steps = layer.layer, int(shape[1] or 0)
    normalizes = any(map(flavour.is_batch_norm, [inner, *flavour.sublayers(inner)]))
    if not normalizes:
        return _together(flavour, inner, shape)
    if flavour.steps_apart(layer, shape[0]):
        return _apart(flavour, inner, steps) if steps <= _MOST_STEPS else None
    return _together(flavour, inner, shape)


def _together(flavour: Flavour, inner: Any, shape: tuple[int | None, ...]) -> Function:
    reshape = flavour.function("reshape")

    def call(inputs: Any, **options: Any) -> Any:
        joined = inner(reshape(inputs, (-1, *shape[2:])))
        return reshape(joined, (-1, shape[1], *tuple(joined.shape)[1:]))

    return call


def _apart(flavour: Flavour, inner: Any, steps: int) -> Function:
    def call(inputs: Any, **options: Any) -> Any:
        return flavour.function("stack")([inner(inputs[:, step]) for step in range(steps)], axis=1)

    return call


_MAKERS: dict[str, Callable[[Flavour, Call], Function | None]] = {
    "MultiHeadAttention": _attention,
    "Attention": _weighted,
    "AdditiveAttention": _weighted,
    "ops.DotProductAttention": _scaled_product,
    "Dot": _cosine,
    **dict.fromkeys(("ops.Norm", "ops.norm", "ops.linalg.norm", "ops.compat.v1.norm"), _norm),
    "TimeDistributed": _every_step,
}
