"""The twin: a Keras model that computes what the exported file computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from rewriter import layers
from rewriter.keras_compat import flavour_of, stack
from rewriter.lowering.lower import lower
from rewriter.program import Operator, Program
from rewriter.reading import from_keras
from rewriter.reading.graph import map_refs
from rewriter.rewriting import sizes


def fold(model: Any, *, input_shape: Any = None) -> Any:
    """The twin of the file that :func:`rewriter.export_tflite` writes.

    A Keras model of the same flavour without BatchNormalization and without anything to train:
    kernels on their int8 grids, biases on their int32 grids, and every operator with the
    arithmetic and the rounding of LiteRT's default kernels (XNNPACK). Evaluate it to know what
    the device will do.

    Args:
      model: a calibrated (or trained) model that :func:`rewriter.rewrite` returned; it is left
        as it is.
      input_shape: as for :func:`rewriter.export_tflite`.

    Returns:
      A model with the inputs and outputs of ``model``, in real values.

    Raises:
      ExportError: if ranges are not set, or a layer has no integer form; it names them.
      UnsupportedModelError: for an ``input_shape`` that does not fit.
    """
    model = sizes.settled(model, input_shape)
    return build_twin(model, lower(model))


def build_twin(model: Any, program: Program) -> Any:
    """The Keras model of ``program``, with the input and output structure of ``model``."""
    flavour = flavour_of(model)
    classes = layers.of(flavour)
    read = from_keras.read(model)
    tensors: dict[str, Any] = {}
    symbols = {}
    for name, ref in zip(program.inputs, read.input_refs(), strict=True):
        original = read.calls[ref.call].layer
        symbol = flavour.clone(original).output
        symbols[ref] = symbol
        grid = program.tensors[name].quantization
        tensors[name] = symbol
        if grid is not None and not grid.whole:
            quantize = classes.QuantizeInput(
                grid.scale, grid.zero_point, grid.bits, name=f"{name}_quantize_input"
            )
            tensors[name] = quantize(symbol)
    last = dict(zip(program.outputs, program.output_names, strict=True))
    taken = set(last.values()) | {s.name for s in symbols.values()}
    for step in program.steps:
        values = [tensors[name] for name in step.inputs]
        shape = (None, *program.tensors[step.output].shape[1:])
        name = _free(last.get(step.output, step.name), taken, step.output in last)
        if step.operator.function is not None:
            layer = flavour.keras.layers.Lambda(
                _real(step.operator), output_shape=shape[1:], name=name, dtype="float32"
            )
        else:
            layer = classes.IntegerOperator(step.operator, name=name).with_output_shape(shape)
        tensors[step.output] = layer(values[0] if len(values) == 1 else values)
    outputs = iter(program.outputs)
    with stack.room_for(len(tensors)):
        return flavour.keras.Model(
            inputs=map_refs(read.inputs, symbols.__getitem__),
            outputs=map_refs(read.outputs, lambda ref: tensors[next(outputs)]),
            name=f"{model.name}_twin",
        )


def _real(operator: Operator) -> Callable[[Any], Any]:
    """A step in float, as a function of one tensor or a list of them."""

    def function(x: Any) -> Any:
        values = x if isinstance(x, (list, tuple)) else [x]
        return tf.cast(operator.real(*values), tf.float32)

    return function


def _free(name: str, taken: set[str], reserved: bool) -> str:
    if reserved:
        return name
    base, count = name, 1
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    taken.add(name)
    return name
