"""Every operator: its file, run by LiteRT, against ``integer.compute``."""

from __future__ import annotations

import platform

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import OpResolverType

from litert_operator_cases import CASES
from litert_single_op import computed, inspect, random_inputs, run, write
from rewriter.checking import interpreter
from rewriter.errors import RewriterError
from rewriter.litert import integer
from rewriter.litert.rows import ROWS
from rewriter.program import Operator, Quantization

# All of XNNPACK's x86 kernels are mirrored exactly. On ARM its MUL multiplies in fixed point, and
# LiteRT's builtin kernels, which take over at extreme ratios of scales, round some halves of
# negative numbers up (NEON, emulated on x86): there one element in a thousand may be off by one.
EXACT = platform.machine() in ("x86_64", "AMD64")


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.wide) for s in (1, 2))])
@pytest.mark.parametrize("name", CASES)
def test_operator_is_computed_as_litert_does(name: str, seed: int) -> None:
    case = CASES[name](np.random.default_rng([seed, *name.encode()]))
    operator = case.operator
    model = write(case)
    kinds, types, quantization = inspect(model)
    assert kinds == [operator.kind]
    assert types["float32"] == (None in (*operator.inputs, operator.output))
    if operator.output is not None and operator.output.whole:
        assert quantization == (0, 0) and types[f"int{operator.output.bits}"]
    elif operator.output is not None:
        wanted = (np.float32(operator.output.scale), operator.output.zero_point)
        assert (np.float32(quantization[0]), quantization[1]) == wanted

    inputs = random_inputs(case, case.batch or 5, np.random.default_rng([seed, 1]))
    expected = run(model, inputs, OpResolverType.AUTO)
    actual = computed(case, inputs)
    assert actual.shape == expected.shape
    if operator.output is None:
        np.testing.assert_array_equal(actual, expected)
        return
    difference = np.abs(actual - expected.astype(np.int32))
    assert difference.max() <= 1
    required = 1.0 if EXACT and not name.endswith("builtin_kernel") else 0.999
    assert np.mean(difference == 0) >= required


@pytest.mark.wide
@pytest.mark.parametrize("kernels", ["builtin", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_other_kernels_round_otherwise_at_most(name: str, kernels: str) -> None:
    """They take the operator, at the version that the file names, and mean the same."""
    case = CASES[name](np.random.default_rng([0, *name.encode()]))
    if case.operator.kind == "ELU" and kernels == "reference":
        pytest.skip("LiteRT has no reference kernel of ELU")
    if case.operator.kind == "DEPTH_TO_SPACE" and kernels == "reference":
        pytest.skip("LiteRT's reference kernels know version 1 only, which TensorFlow never writes")
    if name == "multiply_finer" and kernels == "builtin":
        pytest.skip("LiteRT's NEON kernel adds the zero point in int16 and wraps around")
    inputs = random_inputs(case, case.batch or 2, np.random.default_rng(1))
    (found,) = interpreter.run(write(case), inputs, kernels=kernels, isolated=True)
    if case.operator.output is None:
        np.testing.assert_allclose(found, computed(case, inputs), rtol=1e-6)
        return
    # Interpolation in fixed point rounds once along each axis.
    steps = 3 if case.operator.kind == "RESIZE_BILINEAR" else 1
    assert np.abs(found.astype(np.int32) - computed(case, inputs)).max() <= steps


def test_every_supported_kind_is_tested() -> None:
    tested = {build(np.random.default_rng(0)).operator.kind for build in CASES.values()}
    assert tested == integer.SUPPORTED == ROWS.keys()


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_sums_are_exact_at_the_extremes(groups: int) -> None:
    """All products of one sign: the largest sums there are, against NumPy's int64."""
    kernel = np.full((3, 3, 512 // groups, 2), 127, np.int8)
    kernel[0, 0, 0] = 126
    source = Quantization(0.02, 127)
    scale = np.float32([1e-3, 2e-3])
    operator = Operator(
        "CONV_2D", (source,), Quantization(80.0, -5), {"strides": [1, 1], "padding": "VALID"},
        "none", kernel, scale, np.int32([1, -7]),
    )  # fmt: skip
    q = np.full((1, 3, 3, 512), -128)
    q[..., 5] = -127
    x = (q - 127).reshape(9, groups, 512 // groups)
    sums = np.einsum("pgc,pcg->g" if groups == 2 else "pgc,pco->o", x,
                     kernel.reshape(9, 512 // groups, 2).astype(np.int64))  # fmt: skip
    assert np.abs(sums).max() > 2**24
    factor = np.float32(0.02) * scale / np.float32(80.0)
    expected = np.rint((sums + np.array([1, -7])).astype(np.float32) * factor) - 5
    actual = integer.compute(operator, tf.constant(q, tf.int32))
    np.testing.assert_array_equal(actual.numpy().ravel(), expected)


def test_errors_say_what_to_do() -> None:
    grid, other = Quantization(0.1, 0), Quantization(0.2, 0)
    q = tf.zeros([1, 4], tf.int32)
    with pytest.raises(RewriterError, match="QUANTIZE operator before"):
        integer.compute(Operator("RESHAPE", (grid,), other, {"shape": [4]}), q)
    with pytest.raises(RewriterError, match="Supported"):
        integer.compute(Operator("CUMSUM", (grid,), grid), q)
