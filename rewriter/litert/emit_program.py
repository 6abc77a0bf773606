"""A :class:`~rewriter.program.Program` as a TensorFlow graph, in the hands of a converter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from rewriter.errors import ExportError
from rewriter.litert import patching
from rewriter.litert.emit import emit
from rewriter.litert.emit_nodes import add, fake_quant, leaky_relu
from rewriter.litert.nodes import Node, NodeError, nodes, tensor_of
from rewriter.program import Program, Quantization, Step


def converter(program: Program, barriers: Mapping[int, float], scopes: dict[str, int]) -> Any:
    """TensorFlow's converter, ready to convert the program; its inputs and outputs are float.

    Args:
      program: what to convert.
      barriers: see :func:`~rewriter.litert.patching.barrier_slopes`.
      scopes: gets the position of every step by the scope of its nodes, also if this raises.

    Raises:
      ExportError: an input has no fixed size, or a step cannot be emitted; the message names it.
      NodeError: as :meth:`~rewriter.litert.nodes.Nodes.tensor`.
    """
    floats = any(step.operator.kind == "FLOAT" for step in program.steps)
    return (function_converter if floats else graph_converter)(program, barriers, scopes)


def graph_converter(
    program: Program, barriers: Mapping[int, float], scopes: dict[str, int]
) -> tf.compat.v1.lite.TFLiteConverter:
    """:func:`converter` for what has no variables: of the graph as it is.

    From a function, the converter would freeze them all the same: it puts every node into two
    more graphs of Python's, which is half of its time and of its memory.
    """
    with tf.Graph().as_default():
        specs = _signature(program)
        arguments = [tf.compat.v1.placeholder(s.dtype, s.shape, s.name) for s in specs]
        outputs = _emitted(program, barriers, scopes, arguments)
        # Of an output, the converter uses nothing but the name.
        named = [add("Identity", output) for output in outputs]
        found = tf.compat.v1.lite.TFLiteConverter(nodes().graph_def(), arguments, named)
    found.optimizations = [tf.lite.Optimize.DEFAULT]
    found.inference_type, found.inference_input_type = tf.int8, tf.float32
    # Asked for, and not used: an input that is quantized has a fake-quant operator. The function's
    # converter takes the same numbers by itself.
    found.quantized_input_stats = {argument.op.name: (0.0, 1.0) for argument in arguments}
    return found


def function_converter(
    program: Program, barriers: Mapping[int, float], scopes: dict[str, int]
) -> tf.lite.TFLiteConverter:
    """:func:`converter` for what layers compute in float, with variables of theirs."""

    def compute(*arguments: tf.Tensor) -> tuple[tf.Tensor, ...]:
        outputs = _emitted(program, barriers, scopes, arguments)
        # A name of its own for every output: the converter merges equal ones otherwise.
        return tuple(tf.identity(tensor_of(output)) for output in outputs)

    # Not tf.function, which would look at every node for an order of side effects.
    function = tf.compat.v1.wrap_function(compute, _signature(program))
    found = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    found.optimizations = [tf.lite.Optimize.DEFAULT]
    found.experimental_lower_to_saved_model = False  # saves a trip through the disk
    return found


def _signature(program: Program) -> list[tf.TensorSpec]:
    specs = []
    for i, name in enumerate(program.inputs):
        shape = program.tensors[name].shape
        if None in shape[1:]:
            raise ExportError(
                f"Input '{program.input_names[i]}' has no fixed size, which integer operators "
                f"need. Received shape: {shape}. Rebuild the model with a fixed input shape."
            )
        specs.append(tf.TensorSpec((1, *shape[1:]), tf.float32, f"input_{i:04d}"))
    return specs


def _emitted(
    program: Program,
    barriers: Mapping[int, float],
    scopes: dict[str, int],
    arguments: Sequence[tf.Tensor],
) -> list[Node | tf.Tensor]:
    """The outputs of the program, whose nodes are or will be in the default graph."""
    values: dict[str, Node | tf.Tensor] = {}
    for name, argument in zip(program.inputs, arguments, strict=True):
        quantization = program.tensors[name].quantization
        values[name] = argument if quantization is None else fake_quant(argument, quantization)
    for position, step in enumerate(program.steps):
        inputs = [values[name] for name in step.inputs]
        if position in barriers:
            inputs[0] = _barrier(inputs[0], step.operator.inputs[0], barriers[position])
        with tf.name_scope(step.name) as scope:
            scopes[scope.rstrip("/")] = position
            values[step.output] = _emit(step, inputs)
    return [values[name] for name in program.outputs]


def _barrier(
    x: Node | tf.Tensor, quantization: Quantization | None, slope: float
) -> Node | tf.Tensor:
    """An operator that :func:`~rewriter.litert.patching.restore_disguised` takes out again."""
    if quantization is None:
        return x
    with tf.name_scope("barrier"):
        return fake_quant(leaky_relu(x, slope), quantization)


def _emit(step: Step, inputs: list[Node | tf.Tensor]) -> Node | tf.Tensor:
    operator = step.operator
    try:
        disguise = patching.DISGUISES.get(operator.kind)
        if disguise is not None and operator.output is not None:
            return fake_quant(leaky_relu(inputs[0], disguise.slope), operator.output)
        if operator.function is None:
            return emit(operator, *inputs)
        result = operator.function(*(tensor_of(value) for value in inputs))
        return result if operator.output is None else fake_quant(result, operator.output)
    except NodeError:
        raise
    except Exception as error:
        raise ExportError(
            f"Layer '{step.layer}': step '{step.name}' ({step.operator.kind}) could not be "
            f"emitted: {error}"
        ) from error
