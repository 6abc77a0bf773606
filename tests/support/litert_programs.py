"""Small programs, built by hand, for the tests of the LiteRT export."""

from __future__ import annotations

import dataclasses

import numpy as np

from litert_builder import CONV, Builder, grid, replace_operator
from rewriter.program import Program, Quantization


def residual(seed: int = 0) -> Program:
    """Conv, depthwise, residual add, concat, pool, mean, dense, softmax; two in, three out."""
    b = Builder(seed)
    image = b.input("image", (8, 8, 3), grid(0.0217, 3))
    extra = b.input("a_extra", (8, 8, 4), grid(0.031, -7))
    first = b.linear("stem/conv", "CONV_2D", image, (3, 3, 3, 8), (8, 8, 8), CONV, "relu")
    deep = b.linear("block/depthwise", "DEPTHWISE_CONV_2D", first, (3, 3, 8, 1), (8, 8, 8), CONV)
    wide = b.linear("block/project", "CONV_2D", deep, (1, 1, 8, 8), (8, 8, 8), CONV)
    sums = grid(
        max(b.tensors[first].quantization.scale, b.tensors[wide].quantization.scale) * 1.3, -20
    )
    added = b.step("block/add", "ADD", [first, wide], (8, 8, 8), sums)
    side = b.linear("side", "CONV_2D", extra, (1, 1, 4, 4), (8, 8, 4), CONV, per_tensor=True)
    aligned = b.step("side_grid", "QUANTIZE", [side], (8, 8, 4), sums)
    both = b.step(
        "join", "CONCATENATION", [added, aligned], (8, 8, 12), sums, attributes={"axis": -1}
    )
    pool = {"pool_size": [2, 2], "strides": [2, 2], "padding": "VALID"}
    pooled = b.step("pool", "AVERAGE_POOL_2D", [both], (4, 4, 12), sums, attributes=pool)
    mean = b.step(
        "mean", "MEAN", [pooled], (12,), grid(sums.scale / 3, -5), attributes={"axes": [1, 2]}
    )
    logits = b.linear("dense", "FULLY_CONNECTED", mean, (12, 5), (5,))
    last = b.step("softmax", "SOFTMAX", [logits], (5,), Quantization(1 / 256, -128))
    return b.program([last, added, logits], ["probabilities", "features", "logits"])


def samples(program: Program, count: int = 6, seed: int = 1) -> list[np.ndarray]:
    """Float inputs that fill most of the input's range, and sometimes leave it."""
    rng = np.random.default_rng(seed)
    found = []
    for name in program.inputs:
        tensor = program.tensors[name]
        scale = 1.0 if tensor.quantization is None else 60 * tensor.quantization.scale
        found.append((scale * rng.normal(size=(count, *tensor.shape[1:]))).astype(np.float32))
    return found


def single_conv(per_tensor: bool = False) -> Program:
    """One convolution with a dead channel and one that does not reach 127."""
    b = Builder(3)
    image = b.input("image", (6, 6, 3), grid(0.021, 3))
    y = b.linear("conv", "CONV_2D", image, (3, 3, 3, 8), (6, 6, 8), CONV, per_tensor=per_tensor)
    return b.program([y])


def passthrough() -> Program:
    """Inputs that are outputs, and outputs that are there twice."""
    b = Builder()
    x = b.input("x", (4, 4, 3), grid(0.02, 3))
    y = b.linear("conv", "CONV_2D", x, (1, 1, 3, 4), (4, 4, 4), CONV)
    return b.program([x, y, x, y])


def siblings() -> Program:
    """Two convolutions that only their kernels tell apart; the outputs come swapped."""
    b = Builder()
    x = b.input("x", (4, 4, 8), grid(0.02, 3))
    first = b.linear("first", "CONV_2D", x, (1, 1, 8, 8), (4, 4, 8), CONV)
    second = b.linear("second", "CONV_2D", x, (1, 1, 8, 8), (4, 4, 8), CONV)
    output = b.tensors[first].quantization
    replace_operator(b, -1, output=output)
    b.tensors[second] = dataclasses.replace(b.tensors[second], quantization=output)
    return b.program([second, first])


def shared_layer() -> Program:
    """One layer called three times: twice on one tensor, once on another."""
    b = Builder()
    x, y = (b.input(name, (4, 4, 8), grid(0.02, 3)) for name in "xy")
    first = b.linear("call", "CONV_2D", x, (1, 1, 8, 8), (4, 4, 8), CONV)
    for name, source in (("again", x), ("other", y)):
        result = f"{name}:out"
        step = dataclasses.replace(b.steps[0], name=name, inputs=(source,), output=result)
        b.steps.append(step)
        b.tensors[result] = dataclasses.replace(b.tensors[first], name=result)
    sums = grid(b.tensors[first].quantization.scale * 1.9, 3)
    total = b.step("sum", "ADD", [first, "again:out"], (4, 4, 8), sums)
    return b.program([total, "other:out", "again:out"])


def all_kinds() -> Program:
    """Every operator with a kernel, in its variants, and padding and reshapes between them."""
    b = Builder()
    x = b.input("x", (8, 8, 4), grid(0.02, 3))
    y = b.linear("grouped", "CONV_2D", x, (3, 3, 2, 8), (8, 8, 8), CONV)
    dilated = {**CONV, "dilations": [2, 2]}
    y = b.linear("dilated", "CONV_2D", y, (3, 3, 8, 6), (8, 8, 6), dilated, "relu6")
    strided = {**CONV, "strides": [2, 2]}
    y = b.linear("multiplier", "DEPTHWISE_CONV_2D", y, (3, 3, 6, 2), (4, 4, 12), strided)
    up = {"strides": [2, 2], "padding": "SAME", "output_shape": [8, 8, 5]}
    up_output = y = b.linear("up", "TRANSPOSE_CONV", y, (3, 3, 5, 12), (8, 8, 5), up)
    pads = {"paddings": [[0, 0], [1, 1], [1, 1], [0, 0]]}
    y = b.step("pad", "PAD", [y], (10, 10, 5), b.tensors[y].quantization, attributes=pads)
    valid = {**strided, "padding": "VALID"}
    y = b.linear("valid", "CONV_2D", y, (3, 3, 5, 6), (4, 4, 6), valid)
    kept = b.tensors[y].quantization
    flat = b.step("flat", "RESHAPE", [y], (96,), kept, attributes={"shape": [96]})
    rows = b.step("rows", "RESHAPE", [y], (16, 6), kept, attributes={"shape": [16, 6]})
    one = b.linear("dense", "FULLY_CONNECTED", flat, (96, 7), (7,))
    kept = {"keep_num_dims": True}
    two = b.linear("dense_rows", "FULLY_CONNECTED", rows, (6, 7), (16, 7), kept)
    return b.program([one, two, up_output])


def standalone_activations() -> Program:
    """Activations and changes of scale that the converter would like to merge, and no-ops."""
    b = Builder()
    x = b.input("x", (8, 8, 6), grid(0.02, 3))
    y = b.step("finer", "QUANTIZE", [x], (8, 8, 6), grid(0.03, 5))
    y = b.linear("scale", "DEPTHWISE_CONV_2D", y, (1, 1, 6, 1), (8, 8, 6), CONV)
    half = grid(b.tensors[y].quantization.scale / 2, -128)
    y = b.step("relu", "RELU", [y], (8, 8, 6), half)
    pool = {"pool_size": [2, 2], "strides": [2, 2], "padding": "VALID"}
    y = b.step("max", "MAX_POOL_2D", [y], (4, 4, 6), half, attributes=pool)
    y = b.step("rows", "RESHAPE", [y], (16, 6), half, attributes={"shape": [16, 6]})
    flat = y = b.step("flat", "RESHAPE", [y], (96,), half, attributes={"shape": [96]})
    y = b.step("square", "RESHAPE", [y], (4, 4, 6), half, attributes={"shape": [4, 4, 6]})
    y = b.linear("conv", "CONV_2D", y, (1, 1, 6, 6), (4, 4, 6), CONV)
    y = b.step("relu6", "RELU6", [y], (4, 4, 6), grid(6 / 255, -128))
    y = b.step("relu1", "RELU_N1_TO_1", [y], (4, 4, 6), grid(1 / 127, 0))
    nothing = {"paddings": [[0, 0]] * 4}
    y = b.step("no_pad", "PAD", [y], (4, 4, 6), b.tensors[y].quantization, attributes=nothing)
    last = b.step("coarser", "QUANTIZE", [y], (4, 4, 6), grid(1 / 100, 7))
    return b.program([last, flat, x])


def without_bias() -> Program:
    """Kernels without a bias, and one with a bias of zeros."""
    b = Builder()
    x = b.input("x", (8, 8, 6), grid(0.02, 3))
    y = b.linear("conv", "CONV_2D", x, (1, 1, 6, 6), (8, 8, 6), CONV)
    replace_operator(b, -1, bias=None)
    flat = {"shape": [384]}
    y = b.step("flat", "RESHAPE", [y], (384,), b.tensors[y].quantization, attributes=flat)
    y = b.linear("dense", "FULLY_CONNECTED", y, (384, 6), (6,))
    replace_operator(b, -1, bias=None)
    y = b.linear("logits", "FULLY_CONNECTED", y, (6, 6), (6,))
    replace_operator(b, -1, bias=np.zeros(6, np.int32))
    return b.program([y])


def dead_kernels() -> Program:
    """A kernel of zeros, and a dead channel whose tiny scale makes its bias 2**30 steps."""
    b = Builder()
    x = b.input("x", (8, 8, 6), grid(0.02, 3))
    y = b.linear("zeros", "CONV_2D", x, (1, 1, 6, 6), (8, 8, 6), CONV)
    replace_operator(b, -1, kernel=np.zeros((1, 1, 6, 6), np.int8))
    y = b.linear("conv", "CONV_2D", y, (1, 1, 6, 6), (8, 8, 6), CONV)
    operator = b.steps[-1].operator
    kernel, scale, bias = (
        np.array(a) for a in (operator.kernel, operator.kernel_scale, operator.bias)
    )
    kernel[..., 3], scale[3], bias[3] = 0, scale[3] * 1e-6, 2**30
    replace_operator(b, -1, kernel=kernel, kernel_scale=scale, bias=bias)
    return b.program([y])


def awkward_names() -> Program:
    """Step names that are prefixes of each other, and border names that clash with tensors."""
    b = Builder()
    x, extra = b.input("x", (4, 4, 6), grid(0.02, 3)), b.input("a", (4, 4, 6), grid(0.02, 3))
    y = x
    for name in ("a", "a/b", "a_1"):
        y = b.linear(name, "CONV_2D", y, (1, 1, 6, 6), (4, 4, 6), CONV)
    sums = grid(b.tensors[y].quantization.scale * 1.5, -5)
    y = b.step("add", "ADD", [y, extra], (4, 4, 6), sums)
    program = b.program([y, "a/b:out", x], ["x", "a:out", "a:out"])
    return dataclasses.replace(program, input_names=("add:out", "y"))


def with_float_layers(input_quantization: Quantization | None) -> Program:
    """Float steps in the middle and at the end; a float or an integer input."""
    import tensorflow as tf

    b = Builder()
    x = b.input("x", (4, 4, 6), input_quantization)
    rng = np.random.default_rng(0)
    kernel = tf.constant(rng.normal(size=(6, 6)).astype(np.float32))
    y = b.step(
        "elu", "FLOAT", [x], (4, 4, 6), None, function=lambda t: tf.nn.elu(tf.matmul(t, kernel))
    )
    z = b.step("exp", "FLOAT", [y], (4, 4, 6), None, function=lambda t: tf.exp(t / 9) - 1)
    z = b.step("grid", "QUANTIZE", [z], (4, 4, 6), grid(0.03, -5))
    z = b.linear("conv", "CONV_2D", z, (1, 1, 6, 6), (4, 4, 6), CONV)
    last = b.step("sine", "FLOAT", [z], (4, 4, 6), None, function=lambda t: tf.sin(t / 9))
    return b.program([z, last])


def unused_input() -> Program:
    """An input that nobody reads."""
    b = Builder()
    x, _ = (b.input(name, (4, 4, 3), grid(0.02, 3)) for name in ("x", "ignored"))
    return b.program([b.linear("conv", "CONV_2D", x, (1, 1, 3, 4), (4, 4, 4), CONV)])


INTEGER_PROGRAMS = {
    "residual": residual,
    "passthrough": passthrough,
    "siblings": siblings,
    "shared_layer": shared_layer,
    "all_kinds": all_kinds,
    "standalone_activations": standalone_activations,
    "without_bias": without_bias,
    "dead_kernels": dead_kernels,
    "awkward_names": awkward_names,
    "unused_input": unused_input,
}
