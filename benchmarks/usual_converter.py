"""TensorFlow's own converter on the operators of an integer program.

The export writes its file from a program of integer operators. This is the usual way to the same
file: a ``tf.function`` of the same operators in float, with a fake-quant node on every grid of the
program and the kernels' values as constants, through ``TFLiteConverter.from_concrete_functions``
with ``Optimize.DEFAULT``. The converter makes int8 operators of it, which are counted: they are the
program's, or the comparison is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.litert.islands import quiet
from rewriter.litert.rows import ROWS
from rewriter.program import Operator, Program, Quantization

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "none": lambda x: x,
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "relu_n1_to_1": lambda x: tf.clip_by_value(x, -1, 1),
}


def converter(program: Program) -> Any:
    """The converter of the program's function, which is traced; ``convert`` is left to be called.

    Raises:
      KeyError: for an operator that no model of the benchmarks has.
    """

    def function(*inputs: tf.Tensor) -> list[tf.Tensor]:
        values = {
            name: _on_grid(x, program.tensors[name].quantization)
            for name, x in zip(program.inputs, inputs, strict=True)
        }
        for step in program.steps:
            operator = step.operator
            y = _OPERATORS[operator.kind](operator, *(values[name] for name in step.inputs))
            y = _ACTIVATIONS[operator.activation](y)
            kept = ROWS[operator.kind].same_grid
            values[step.output] = y if kept else _on_grid(y, operator.output)
        return [values[name] for name in program.outputs]

    specs = [
        tf.TensorSpec((1, *program.tensors[name].shape[1:]), tf.float32) for name in program.inputs
    ]
    concrete = tf.function(function, input_signature=specs).get_concrete_function()
    made = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    made.optimizations = [tf.lite.Optimize.DEFAULT]
    made.inference_input_type = made.inference_output_type = tf.int8
    return made


def convert(made: Any) -> bytes:
    """The file, without the converter's notes on the terminal."""
    with quiet():
        content: bytes = made.convert()
    return content


def _on_grid(x: Any, grid: Quantization | None) -> Any:
    if grid is None:
        return x
    low, high = grid.range
    return tf.quantization.fake_quant_with_min_max_args(x, low, high)


def _kernel(operator: Operator) -> Any:
    """The kernel's real values, in Keras's layout."""
    kernel = np.asarray(operator.kernel, np.float32)
    scale = np.asarray(operator.kernel_scale, np.float32)
    if operator.kind == "DEPTHWISE_CONV_2D":
        scale = scale.reshape(kernel.shape[2:])
    return tf.constant(kernel * scale)


def _with_bias(y: Any, operator: Operator) -> Any:
    if operator.bias is None:
        return y
    grid = operator.inputs[0]
    step = np.float32(grid.scale if grid else 1) * np.asarray(operator.kernel_scale, np.float32)
    return tf.nn.bias_add(y, tf.constant(np.float32(operator.bias) * step))


def _conv(operator: Operator, x: Any) -> Any:
    attributes = operator.attributes
    y = tf.nn.conv2d(
        x,
        _kernel(operator),
        attributes["strides"],
        attributes["padding"],
        dilations=attributes.get("dilations", [1, 1]),
    )
    return _with_bias(y, operator)


def _depthwise(operator: Operator, x: Any) -> Any:
    attributes = operator.attributes
    y = tf.nn.depthwise_conv2d(
        x,
        _kernel(operator),
        [1, *attributes["strides"], 1],
        attributes["padding"],
        dilations=attributes.get("dilations", [1, 1]),
    )
    return _with_bias(y, operator)


def _dense(operator: Operator, x: Any) -> Any:
    if not operator.attributes.get("keep_num_dims", False):
        x = tf.reshape(x, [-1, np.asarray(operator.kernel).shape[0]])
    return _with_bias(tf.matmul(x, _kernel(operator)), operator)


def _pool(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda o, x: function(
        x, o.attributes["pool_size"], o.attributes["strides"], o.attributes["padding"]
    )


def _binary(function: Callable[..., Any]) -> Callable[..., Any]:
    def emit(operator: Operator, *x: Any) -> Any:
        if "constant" in operator.attributes:
            x = (*x, tf.constant(operator.attributes["constant"], tf.float32))
        return function(*x)

    return emit


_OPERATORS: dict[str, Callable[..., Any]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _dense,
    "ADD": _binary(tf.add),
    "SUB": _binary(tf.subtract),
    "MUL": _binary(tf.multiply),
    "AVERAGE_POOL_2D": _pool(tf.nn.avg_pool2d),
    "MAX_POOL_2D": _pool(tf.nn.max_pool2d),
    "MEAN": lambda o, x: tf.reduce_mean(
        x, o.attributes["axes"], o.attributes.get("keepdims", False)
    ),
    "CONCATENATION": lambda o, *x: tf.concat(x, o.attributes["axis"]),
    "PAD": lambda o, x: tf.pad(x, o.attributes["paddings"]),
    "RESHAPE": lambda o, x: tf.reshape(x, [-1, *o.attributes["shape"]]),
    "QUANTIZE": lambda o, x: x,
    "RELU": lambda o, x: tf.nn.relu(x),
    "LOGISTIC": lambda o, x: tf.sigmoid(x),
    "SOFTMAX": lambda o, x: tf.nn.softmax(x),
}
