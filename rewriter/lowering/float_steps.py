"""Layers without an integer form: kept as they are, computed in float between the integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import ExportError
from rewriter.layers.linear import LINEAR
from rewriter.lowering import precisions
from rewriter.lowering.linear import after_kernel
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Shape, Value
from rewriter.program import Operator, Quantization, whole
from rewriter.reading import inside
from rewriter.reading.graph import Call, Ref, map_refs
from rewriter.reading.roles import BatchNorm, Host


def lower(
    low: ProgramBuilder, call: Call, env: Mapping[Ref, Value], numbers: Sequence[bool]
) -> Sequence[Value]:
    """One FLOAT step for each output of a layer or an operation.

    ``numbers``: which of the outputs the program has as whole numbers.

    Raises:
      ExportError: if the layer works under a mask, which no tensor of a file carries.
    """
    _refuse_mask(call)
    refs = list(dict.fromkeys(call.refs))
    dtypes = dict(zip(call.refs, call.input_dtypes, strict=True))
    names = [low.real(env[ref]) for ref in refs]

    def compute(*x: Any) -> list[Any]:
        # The program's tensors are float; layers want their inputs' own dtypes.
        tensors = {ref: tf.cast(v, dtypes[ref]) for ref, v in zip(refs, x, strict=True)}
        args, kwargs = map_refs((call.args, call.kwargs), tensors.__getitem__)
        return tf.nest.flatten(call.layer(*args, **inside.in_inference(low.flavour, call, kwargs)))

    function: Callable[..., Any] = compute
    layers = [call.layer, *low.flavour.sublayers(call.layer)]
    own = [getattr(layer, "compute_dtype", None) for layer in layers]
    if any(map(precisions.other, [*own, *call.dtypes, *call.input_dtypes])):
        shapes = [low.tensors[name].shape for name in names]
        function = precisions.in_float32(compute, shapes)
    steps = []
    for index, (shape, dtype) in enumerate(zip(call.shapes, call.dtypes, strict=True)):
        # One real number for all samples is not what a file computes; a size is, of its own batch.
        single = int(not shape and tf.as_dtype(dtype).is_floating)
        sizes = (None, *shape[1:]) if shape else ()
        grid = whole(dtype) if numbers[index] else None
        steps.append(_step(low, call, names, sizes, function, grid, part=index, whole=single))
    return steps


def _step(
    low: ProgramBuilder,
    call: Call,
    names: Sequence[str],
    shape: Shape,
    function: Callable[..., Any],
    output: Quantization | None = None,
    **attributes: int,
) -> Value:
    grids = tuple(low.tensors[name].quantization for name in names)
    described: dict[str, Any] = {**attributes, "layer": _described(call.layer)}
    described |= {"reason": call.closed} if call.closed else {}
    if isinstance(call.role, (BatchNorm, Host)):  # a rewriting makes ours of all of these
        described["stock"] = True
    operator = Operator("FLOAT", grids, output, described, function=function)
    return low.add(call.path, operator, names, shape)


def _described(layer: Any) -> str:
    """The class of a layer, or of the layer in ours with its activation, for messages."""
    host = getattr(layer, "host", None)
    name = type(layer if host is None else host).__name__
    activation = getattr(layer if host is None else host, "activation", None)
    of = getattr(activation, "__name__", None)
    return name if of in (None, "linear") else f"{name} with the activation {of}"


def _refuse_mask(call: Call) -> None:
    if not call.masked or "bool" in call.dtypes:
        return
    # Beside `mask`: the masks of query, key and value; tf_keras's attention has only this one.
    if any(name == "mask" or name.endswith("_mask") for name in inside.parameters(call.layer)):
        raise ExportError(
            f"Layer {call.path!r} works under a mask (of Masking, or of an Embedding with "
            "mask_zero=True), and a LiteRT file carries none. Build the model without masks, or "
            "export the part after this layer."
        )


def activation(low: ProgramBuilder, call: Call, x: Value) -> Value:
    """The activation of a host, where it has no integer form."""
    return _step(low, call, [low.real(x)], x.shape, call.layer.host.activation)


def host(low: ProgramBuilder, call: Call, x: Value) -> Value:
    """A host that LiteRT has no integer kernel for, with its normalization and activation."""
    layer = call.layer
    kernels = [np.asarray(kernel) for kernel in layer.quantized_kernels()]
    factor, bias = after_kernel(layer, call.shapes[0][-1] or 0)

    def compute(value: Any) -> Any:
        tensors = [tf.constant(kernel) for kernel in kernels]
        flat = value
        if layer.distributed:
            flat = tf.reshape(value, [-1, *value.shape[2:]])
        y = LINEAR[layer.row.name](layer.host, flat, tensors, lambda tensor: tensor)
        if layer.distributed:
            y = tf.reshape(y, [-1, *call.shapes[0][1:]])
        y = y * tf.constant(factor, tf.float32) + tf.constant(bias, tf.float32)
        return y if layer.host.activation is None else layer.host.activation(y)

    return _step(low, call, [low.real(x)], (None, *call.shapes[0][1:]), compute)
