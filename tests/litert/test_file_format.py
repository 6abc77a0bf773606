"""What a written file says of itself: versions, the runtime that it needs, how constants lie."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import litert_files
import litert_programs as programs
from litert_builder import CONV, Builder, grid
from litert_operator_cases import CASES
from litert_single_op import write
from rewriter.checking import reading
from rewriter.grid import kernel
from rewriter.litert import flatbuffer, writer


def case_of(name):
    return CASES[name](np.random.default_rng([0, *name.encode()]))


def runtime(content):
    """The entry of a file's metadata that names the first runtime which can run it."""
    model = flatbuffer.unpack(content)
    entries = [e for e in model.metadata if flatbuffer.text(e.name) == "min_runtime_version"]
    # TensorFlow 2.18 writes an empty one beside it.
    said = [bytes(np.asarray(model.buffers[e.buffer].data, np.uint8)) for e in entries]
    (data,) = (text for text in said if text.strip(b"\0"))
    assert len(data) == 16 or not data.endswith(b"\0")
    return data.rstrip(b"\0").decode()


def weights(*shape):
    return tf.constant(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def resized(kind, **options):
    return lambda x: getattr(tf.compat.v1.image, f"resize_{kind}")(x, [18, 22], **options)


def transposed(x):
    y = tf.nn.conv2d_transpose(x, weights(3, 3, 16, 8), [1, 18, 22, 16], 2, "SAME")
    return y + weights(16)


# For cases of the table of operators: the same in float, of which TensorFlow's converter makes the
# operator; its version and runtime are TensorFlow's own.
OURS_AND_THEIRS = {
    "conv": lambda x: tf.nn.conv2d(x, weights(3, 3, 8, 16), 1, "SAME") + weights(16),
    "conv_grouped": lambda x: tf.nn.conv2d(x, weights(3, 3, 4, 6), 2, "SAME") + weights(6),
    "depthwise": lambda x: tf.nn.depthwise_conv2d(x, weights(3, 3, 8, 1), [1] * 4, "SAME"),
    "dense": lambda x: tf.matmul(x, weights(40, 16)) + weights(16),
    "dense_rank_3": lambda x: tf.nn.relu(tf.matmul(x, weights(40, 16)) + weights(16)),
    "transposed": transposed,
    "transposed_no_bias_relu": lambda x: tf.nn.relu(transposed(x)),
    "add": tf.add,
    "add_rank_5": tf.add,
    "subtract": tf.subtract,
    "subtract_rank_5": tf.subtract,
    "multiply": tf.multiply,
    "multiply_rank_5": tf.multiply,
    "maximum": tf.maximum,
    "maximum_rank_5": tf.maximum,
    "minimum": tf.minimum,
    "AVERAGE_POOL_2D_VALID": lambda x: tf.nn.avg_pool2d(x, 2, 2, "VALID"),
    "MAX_POOL_2D_VALID": lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"),
    "mean": lambda x: tf.reduce_mean(x, [1, 2]),
    "reduce_max": lambda x: tf.reduce_max(x, [1, 2]),
    "matmul": tf.matmul,
    "matmul_transposed": lambda x, y: tf.matmul(x, y, transpose_b=True),
    "reduce_min": lambda x: tf.reduce_min(x, [1, 2], keepdims=True),
    "depth_to_space": lambda x: tf.nn.depth_to_space(x, 2),
    "space_to_depth": lambda x: tf.nn.space_to_depth(x, 2),
    "abs": tf.abs,
    "exp": tf.exp,
    "squared_difference": tf.math.squared_difference,
    "softmax": tf.nn.softmax,
    "l2_normalization": lambda x: tf.nn.l2_normalize(x, -1),
    "reshape": lambda x: tf.reshape(x, [1, 33, 24]),
    "concatenation": lambda x, y: tf.concat([x, y], -1),
    "pad": lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [0, 0]]),
    "pad_rank_5": lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 1], [2, 0], [0, 0]]),
    "transpose": lambda x: tf.transpose(x, [0, 3, 1, 2]),
    "transpose_rank_5": lambda x: tf.transpose(x, [0, 4, 1, 3, 2]),
    "transpose_rank_6": lambda x: tf.transpose(x, [0, 5, 1, 3, 2, 4]),
    "slice": lambda x: x[:, 1:, ::2],
    "slice_rank_5": lambda x: x[:, 1:, ::2],
    "RESIZE_NEAREST_NEIGHBOR_18_legacy": resized("nearest_neighbor"),
    "RESIZE_NEAREST_NEIGHBOR_18_align_corners": resized("nearest_neighbor", align_corners=True),
    "RESIZE_NEAREST_NEIGHBOR_18_half_pixel_centers": resized(
        "nearest_neighbor", half_pixel_centers=True
    ),
    "RESIZE_BILINEAR_18_legacy": resized("bilinear"),
    "RESIZE_BILINEAR_18_align_corners": resized("bilinear", align_corners=True),
    "RESIZE_BILINEAR_18_half_pixel_centers": resized("bilinear", half_pixel_centers=True),
    "logistic": tf.sigmoid,
    "tanh": tf.tanh,
    "relu": tf.nn.relu,
    "relu6_rescaled": tf.nn.relu6,
    "leaky_relu": lambda x: tf.nn.leaky_relu(x, 0.3),
    "gelu": tf.nn.gelu,
    "hard_swish": lambda x: x * tf.nn.relu6(x + 3) / 6,
}


def converted(function, shapes):
    """TensorFlow's own file of the function in int8."""
    specs = [tf.TensorSpec((1, *shape), tf.float32) for shape in shapes]
    concrete = tf.function(function).get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    rng = np.random.default_rng(0)
    samples = [[rng.normal(size=s.shape).astype(np.float32) for s in specs] for _ in range(2)]
    converter.representative_dataset = lambda: samples
    return converter.convert()


@pytest.mark.parametrize("name", OURS_AND_THEIRS)
def test_version_and_runtime_are_tensorflows(name):
    case = case_of(name)
    ours, theirs = write(case), converted(OURS_AND_THEIRS[name], case.shapes)
    assert litert_files.versions(ours) == litert_files.versions(theirs)
    if case.operator.kind == "FULLY_CONNECTED":
        # A scale for each output: runtimes before 2.17 read only the first.
        assert runtime(ours) == "2.17.0"
    else:
        assert runtime(ours) == runtime(theirs)


@pytest.mark.parametrize(
    ("name", "version"),
    {
        "conv_dilated": 3,
        "conv_grouped_to_one": 6,
        "depthwise_dilated": 3,
        "dense_rank_4": 5,
        "transposed_valid_relu": 4,
        "add_constant": 2,
        "multiply_constant": 2,
        "multiply_finer": 3,
        "prelu": 1,
        "log": 2,
        "elu": 1,
        "relu_n1_to_1_rescaled": 1,
        "requantize": 1,
        "quantize": 1,
        "dequantize": 2,
    }.items(),
)
def test_versions_that_tensorflow_does_not_show(name, version):
    case = case_of(name)
    assert litert_files.versions(write(case)) == [(case.operator.kind, version)]


@pytest.mark.parametrize(
    ("name", "axes", "version", "first"),
    [
        ("conv", (-1,), 7, "2.11.0"),
        ("conv_grouped", (-1,), 7, "2.11.0"),
        ("depthwise", (-2, -1), 7, "2.11.0"),
        ("dense", (-1,), 10, "2.17.0"),
        ("dense_rank_3", (-1,), 10, "2.17.0"),
    ],
)
def test_kernels_of_four_bits(name, axes, version, first):
    case = case_of(name)
    small = np.asarray(case.operator.kernel) // 19
    operator = dataclasses.replace(case.operator, kernel=small, kernel_grid=kernel(4, axes))
    content = write(dataclasses.replace(case, operator=operator))
    assert litert_files.versions(content) == [(operator.kind, version)]
    assert runtime(content) == first
    tensors = reading.read(content).tensors
    (stored,) = (t for t in tensors if t.dtype == "INT4")
    model = flatbuffer.unpack(content)
    data = model.buffers[model.subgraphs[0].tensors[stored.index].buffer].data
    assert len(data) == (small.size + 1) // 2


def test_the_runtime_is_the_latest_of_all_operators():
    assert runtime(writer.write(programs.single_conv())) == "1.14.0"
    assert runtime(writer.write(programs.all_kinds())) == "2.17.0"  # its dense layers
    floats = programs.with_float_layers(grid(0.02))
    assert runtime(writer.write(floats, allow_float=True)) >= "1.14.0"


def data_offsets(content):
    """Where the data of each buffer start in the file."""
    model = flatbuffer.schema.Model.GetRootAs(content, 0)
    for i in range(model.BuffersLength()):
        table = model.Buffers(i)._tab
        if table.Offset(4):
            yield table.Vector(table.Offset(4))


@pytest.mark.parametrize("name", programs.INTEGER_PROGRAMS)
def test_constants_are_aligned(name):
    content = writer.write(programs.INTEGER_PROGRAMS[name]())
    offsets = list(data_offsets(content))
    assert len(offsets) >= 3
    assert {offset % 16 for offset in offsets} == {0}


def test_equal_constants_are_stored_once():
    program = programs.shared_layer()
    content = writer.write(program)
    file = reading.read(content)
    first, again, other = (op for op in file.operators if op.kind == "CONV_2D")
    assert first.inputs[1:] == again.inputs[1:] == other.inputs[1:]
    held = [t for t in file.tensors if t.constant]
    assert len(held) == 2  # kernel and bias
    lone = writer.write(programs.single_conv())
    assert len(content) < len(lone) + 3000


def test_what_is_not_equal_is_not_shared():
    """The same integers with other scales, another shape, or another type are other constants."""
    b = Builder()
    x = b.input("x", (4, 4, 4), grid(0.02, 3))
    first = b.linear("first", "CONV_2D", x, (1, 1, 4, 4), (4, 4, 4), CONV)
    step = b.steps[0]
    scales = np.nextafter(step.operator.kernel_scale, np.float32(1))
    operator = dataclasses.replace(step.operator, kernel_scale=scales)
    b.steps.append(dataclasses.replace(step, name="finer", operator=operator, output="finer:out"))
    b.tensors["finer:out"] = dataclasses.replace(b.tensors[first], name="finer:out")
    content = writer.write(b.program([first, "finer:out"]))
    one, two = reading.read(content).operators
    assert not set(one.inputs[1:]) & set(two.inputs[1:])
    mapping_scales = [reading.read(content).tensors[op.inputs[1]].scale for op in (one, two)]
    np.testing.assert_array_equal(mapping_scales[0], step.operator.kernel_scale)
    np.testing.assert_array_equal(mapping_scales[1], scales)


def test_computed_tensors_hold_no_data():
    content = writer.write(programs.residual())
    model = flatbuffer.unpack(content)
    first = model.buffers[0].data
    assert first is None or len(first) == 0
    file = reading.read(content)
    for op in file.operators:
        for index in op.outputs:
            assert model.subgraphs[0].tensors[index].buffer == 0
    empty = [b for b in model.buffers if b.data is None or len(b.data) == 0]
    assert len(empty) == 1


def test_a_files_bytes_depend_on_nothing_else():
    program = programs.residual()
    assert writer.write(program) == writer.write(programs.residual())
