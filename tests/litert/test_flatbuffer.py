"""Reading, editing and writing files."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import litert_programs as programs
from litert_builder import grid
from litert_files import written
from rewriter.checking import interpreter, reading
from rewriter.errors import VerificationError
from rewriter.litert import flatbuffer


@pytest.fixture(scope="module")
def residual():
    program = programs.residual()
    content, mapping = written(program)
    return program, content, mapping


@pytest.fixture(scope="module")
def plain_dense():
    """A dense layer as TensorFlow's converter makes it, with dynamic-range quantization."""
    kernel = tf.constant(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32))
    function = tf.function(lambda x: tf.nn.elu(tf.matmul(x, kernel))).get_concrete_function(
        tf.TensorSpec((1, 64), tf.float32)
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


def data_offsets(content):
    """Where the data of each buffer start in the file."""
    model = flatbuffer.schema.Model.GetRootAs(content, 0)
    for i in range(model.BuffersLength()):
        table = model.Buffers(i)._tab
        if table.Offset(4):
            yield table.Vector(table.Offset(4))


def test_round_trip_keeps_the_model_and_aligns_buffers(residual):
    program, content, _ = residual
    again = flatbuffer.pack(flatbuffer.unpack(content))
    inputs = programs.samples(program, 3)
    for a, b in zip(interpreter.run(content, inputs), interpreter.run(again, inputs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(list(data_offsets(again))) > 5
    assert {offset % 16 for offset in data_offsets(again)} == {0}


def test_view(residual):
    program, content, mapping = residual
    file = reading.read(content)
    conv = file.producers()[mapping.indexes["stem/conv:out"]]
    assert conv.kind == "CONV_2D"
    kernel = file.tensors[conv.inputs[1]]
    operator = program.steps[0].operator
    assert (kernel.shape, kernel.dtype, kernel.quantized_dimension) == ((8, 3, 3, 3), "INT8", 0)
    assert kernel.constant and not file.tensors[conv.inputs[0]].constant
    np.testing.assert_array_equal(kernel.scale, operator.kernel_scale)
    stored = reading.stored(flatbuffer.unpack(content), kernel.index)
    for o in range(8):
        np.testing.assert_array_equal(stored[o], operator.kernel[:, :, :, o])


def test_the_view_is_the_unpacked_file(residual, plain_dense):
    """Read field by field, against the schema's own objects."""
    for content in (residual[1], plain_dense):
        file, model = reading.read(content), flatbuffer.unpack(content)
        graph = model.subgraphs[0]
        assert file.operators and len(file.tensors) == len(graph.tensors)
        for ours, theirs in zip(file.operators, graph.operators, strict=True):
            assert ours.kind == flatbuffer.kind_of(model, theirs)
            assert ours.inputs == tuple(theirs.inputs) and ours.outputs == tuple(theirs.outputs)
        for ours, theirs in zip(file.tensors, graph.tensors, strict=True):
            assert ours.name == theirs.name.decode()
            assert ours.shape == tuple(() if theirs.shape is None else theirs.shape)
            data = model.buffers[theirs.buffer].data
            assert ours.constant == (data is not None and len(data) > 0)
            scale = None if theirs.quantization is None else theirs.quantization.scale
            np.testing.assert_array_equal(ours.scale, [] if scale is None else scale)
        assert file.inputs == tuple(graph.inputs) and file.outputs == tuple(graph.outputs)
        signature = model.signatureDefs[0] if model.signatureDefs else None
        named = [] if signature is None else signature.outputs
        assert [name for name, _ in file.signature[1]] == [m.name.decode() for m in named]


def test_census(residual, plain_dense):
    program, content, _ = residual
    counted = reading.census(content)
    assert counted.operators["CONV_2D"] == 3 and counted.operators["QUANTIZE"] == 1
    assert counted.integer_only and counted.conversions == ("side_grid:out",)
    with_float_border = reading.census(written(program, float_io=True)[0])
    assert with_float_border.integer_only
    assert with_float_border.operators["DEQUANTIZE"] == 3
    assert with_float_border.conversions == ("side_grid:out",)
    floating = reading.census(plain_dense)
    assert not floating.integer_only
    assert len(floating.hybrid) == 1 and len(floating.float_tensors) == 3
    island = programs.with_float_layers(grid(0.02))
    mixed = reading.census(written(island, allow_float=True)[0])
    assert not mixed.integer_only and len(mixed.conversions) == 3, mixed


@pytest.mark.parametrize("kernels", interpreter.KERNELS)
def test_extra_outputs_change_nothing_else(residual, kernels):
    program, content, mapping = residual
    everything = reading.with_all_outputs(content)
    before, after = reading.read(content), reading.read(everything)
    assert after.outputs[: len(before.outputs)] == before.outputs
    assert set(mapping.indexes.values()) <= set(after.outputs) | set(after.inputs)
    inputs = programs.samples(program, 4)
    plain = interpreter.run(content, inputs, kernels=kernels)
    first = interpreter.run(everything, inputs, kernels=kernels)[: len(plain)]
    for a, b in zip(plain, first, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tensors_are_refused_where_the_interpreter_drops_them(residual):
    program, content, mapping = residual
    inputs = programs.samples(program, 1)
    index = mapping.indexes["stem/conv:out"]
    with pytest.raises(ValueError, match="all_tensors=True"):
        interpreter.Runner(content).run(inputs, tensors=[index])
    found = interpreter.Runner(content, all_tensors=True).run(inputs, tensors=[index])
    assert found.tensors[index].shape == (1, 8, 8, 8)


def test_not_a_file():
    with pytest.raises(VerificationError, match="TFL3"):
        reading.read(b"PK\x03\x04 something else")


def test_float_inputs_are_quantized_as_litert_does():
    """The reference is LiteRT's own QUANTIZE, through a file with float inputs."""
    program = programs.passthrough()
    inputs = programs.samples(program, 50)
    inputs[0][0] = (np.arange(48).reshape(4, 4, 3) - 20.5) * 0.02  # ties
    content, mapping = written(program, float_io=True)
    index = mapping.indexes["x"]
    found = interpreter.Runner(content, all_tensors=True).run(inputs, tensors=[index])
    expected = interpreter.quantize(inputs[0], program.tensors["x"].quantization)
    assert {-128, 127} <= set(np.unique(expected))
    np.testing.assert_array_equal(found.tensors[index], expected)


def test_bad_inputs_are_refused(residual):
    program, content, _ = residual
    inputs = programs.samples(program, 2)
    for bad in (inputs[:1], inputs[::-1], [inputs[0], inputs[1][:1]]):
        with pytest.raises(ValueError, match="Received"):
            interpreter.run(content, bad)
    with pytest.raises(ValueError, match="Unknown kernels"):
        interpreter.run(content, inputs, kernels="gpu")
