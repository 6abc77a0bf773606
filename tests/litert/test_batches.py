"""Files that take several samples at a time give the integers of those that take one."""

from __future__ import annotations

import numpy as np
import pytest

import builders
import litert_programs as programs
import rewriter
import small_models
from litert_builder import Builder, grid
from litert_files import run_batch, stored_inputs
from litert_random_programs import random_program
from rewriter.checking.compare import compare_program
from rewriter.errors import ExportError
from rewriter.litert import flatbuffer, writer

PROGRAMS = {
    **{name: (build, {}) for name, build in programs.INTEGER_PROGRAMS.items()},
    "float_io": (programs.residual, {"float_io": True}),
    "float_layers": (lambda: programs.with_float_layers(grid(0.02, 3)), {"allow_float": True}),
    "float_inputs": (lambda: programs.with_float_layers(None), {"allow_float": True}),
    **{f"random_{seed}": (lambda seed=seed: random_program(seed), {}) for seed in range(4)},
}
SIZES = (1, 4, 7)
SAMPLES = 28


def in_batches(content, arrays, size, kernels):
    """All samples, so many at a time."""
    chunks = [[a[i : i + size] for a in arrays] for i in range(0, len(arrays[0]), size)]
    found = [run_batch(content, chunk, kernels) for chunk in chunks]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def assert_equal(found, expected, kernels="xnnpack"):
    """Bit for bit; but LiteRT's own DEQUANTIZE rounds the last elements of a tensor otherwise."""
    for a, b in zip(found, expected, strict=True):
        if a.dtype == np.float32 and kernels == "builtin":
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_any_batch_gives_the_integers_of_one(name, kernels):
    build, options = PROGRAMS[name]
    program = build()
    arrays = programs.samples(program, SAMPLES)
    if not options.get("float_io"):
        arrays = stored_inputs(program, arrays)
    expected = in_batches(writer.write(program, **options), arrays, 1, kernels)
    four = writer.write(program, batch_size=4, **options)
    assert_equal(in_batches(four, arrays, 4, kernels), expected, kernels)
    free = writer.write(program, batch_size=None, **options)
    transposed = any(step.operator.kind == "TRANSPOSE_CONV" for step in program.steps)
    for size in SIZES:
        if transposed and kernels == "builtin" and size > 1:
            # The shape of its output is a constant of the file; XNNPACK looks at the input's.
            with pytest.raises(RuntimeError, match="TRANSPOSE_CONV"):
                in_batches(free, arrays, size, kernels)
        else:
            assert_equal(in_batches(free, arrays, size, kernels), expected, kernels)


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_shapes_in_the_file(batch_size):
    content = writer.write(programs.residual(), batch_size=batch_size)
    graph = flatbuffer.unpack(content).subgraphs[0]
    border = {*graph.inputs.tolist(), *graph.outputs.tolist()}
    for index in border:
        tensor = graph.tensors[index]
        assert tensor.shape[0] == (batch_size or 1)
        if batch_size is None:
            assert tensor.shapeSignature.tolist() == [-1, *tensor.shape[1:]]
        else:
            assert tensor.shapeSignature is None


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "4"])
def test_bad_sizes_are_refused(batch_size):
    with pytest.raises(ValueError, match=r"batch_size.*Received"):
        writer.write(programs.single_conv(), batch_size=batch_size)


@pytest.mark.parametrize("count", [1, 4, 6])
@pytest.mark.parametrize("batch_size", [4, None])
def test_files_of_any_batch_are_compared(batch_size, count):
    """With numbers of samples that the file's batch does not divide."""
    program = programs.residual()
    content = writer.write(program, batch_size=batch_size)
    report = compare_program(program, content, None, programs.samples(program, count))
    assert report.samples == count and not report.differences
    assert all(a.identical == 1 for a in report.operator_by_operator)
    assert report.operator_by_operator[0].elements == count * 8 * 8 * 8


def test_rows_of_a_sample_in_an_open_batch():
    """A RESHAPE that makes several rows of a sample."""
    b = Builder()
    x = b.input("x", (6, 8), grid(0.02, 3))
    rows = b.step("rows", "RESHAPE", [x], (8,), grid(0.02, 3), attributes={"shape": [8]})
    y = b.linear("dense", "FULLY_CONNECTED", rows, (8, 5), (5,))
    program = b.program([y])
    arrays = stored_inputs(program, programs.samples(program, SAMPLES))
    expected = in_batches(writer.write(program), arrays, 1, "xnnpack")
    assert expected[0].shape == (6 * SAMPLES, 5)
    free = writer.write(program, batch_size=None)
    for size in SIZES:
        assert_equal(in_batches(free, arrays, size, "xnnpack"), expected)


@pytest.mark.parametrize("flavour", builders.KERASES)
def test_models(flavour, tmp_path):
    model = small_models.small(builders.fresh(builders.keras_of(flavour)))
    data = builders.residual_data(SAMPLES, 0)
    qat = builders.calibrated(model, data)
    found = {}
    for batch_size in (1, 4, None):
        path = tmp_path / f"{batch_size}.tflite"
        rewriter.export_tflite(qat, path, float_io=True, batch_size=batch_size)
        for size in SIZES if batch_size is None else (batch_size,):
            for kernels in ("xnnpack", "builtin"):
                (y,) = in_batches(path.read_bytes(), [data], size, kernels)
                np.testing.assert_array_equal(y, found.setdefault(kernels, y))
        report = rewriter.verify(qat, path, data[:6], progress=False).comparison
        assert min(a.identical for a in report.operator_by_operator) == 1.0
    assert np.std(found["xnnpack"]) > 0


def test_a_model_exported_with_a_bad_size(tmp_path):
    model = small_models.small(builders.fresh(builders.keras_of("keras")))
    qat = builders.calibrated(model, builders.residual_data(8, 0))
    with pytest.raises((ValueError, ExportError), match="batch_size"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite", batch_size=0)
    assert not list(tmp_path.iterdir())
