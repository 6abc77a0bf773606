"""Every operator of int16 tensors: its file, run by LiteRT, against ``integer.compute``."""

from __future__ import annotations

import dataclasses
import platform

import numpy as np
import pytest
from ai_edge_litert.interpreter import OpResolverType

from litert_files import versions
from litert_operator_cases import CASES as ALL_CASES
from litert_single_op import Case, computed, inspect, random_inputs, run, write
from rewriter import grid as grids
from rewriter.errors import ExportError, RewriterError
from rewriter.litert import integer, integer_wide, integer_wide_limits
from rewriter.litert.problems import problem
from rewriter.lowering import widths
from rewriter.program import Operator, Quantization
from wide_operator_cases import CASES, UNIT, linear, wide

RESOLVERS = {
    "default": OpResolverType.AUTO,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}
# Where LiteRT's reference kernel rounds otherwise than its default one, by one step and seldom.
REFERENCE = {"ADD_many": 1e-4, "ADD_many_odd": 1e-4, "quantize": 1e-2}


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.wide) for s in (1, 2))])
@pytest.mark.parametrize("name", CASES)
def test_operator_is_computed_as_litert_does(name: str, seed: int) -> None:
    case = CASES[name](np.random.default_rng([seed, *name.encode()]))
    operator = case.operator
    assert problem(operator) is None
    model = write(case)
    kinds, types, _ = inspect(model)
    assert kinds == [operator.kind] and types["int16"] > 0
    inputs = random_inputs(case, case.batch or 3, np.random.default_rng([seed, 1]))
    actual = computed(case, inputs).astype(np.float64)
    for kernels, resolver in RESOLVERS.items():
        expected = run(model, inputs, resolver)
        assert expected.dtype == (np.float32 if operator.output is None else np.int16)
        difference = np.abs(actual - expected)
        share = REFERENCE.get(name, 0.0) if kernels == "reference" else 0.0
        if platform.machine() not in ("x86_64", "AMD64"):
            share = max(share, 1e-3)
        assert difference.max() <= (1 if share else 0), kernels
        assert np.mean(difference > 0) <= share, kernels


def test_every_operator_of_16_bits_is_tested() -> None:
    """Those of normalizations and products are beside the ones of 8 bits."""
    cases = [*CASES.values(), *(build for name, build in ALL_CASES.items() if "wide" in name)]
    tested = {build(np.random.default_rng(0)).operator.kind for build in cases}
    assert tested == integer_wide.SUPPORTED


def test_versions_are_those_of_16_bits() -> None:
    wanted = {
        "conv_none": 4, "depthwise": 5, "dense": 7, "transposed_valid": 3, "ADD_none": 3,
        "SUB_none": 5, "MUL_none": 4, "maximum": 4, "softmax": 3, "logistic": 3, "tanh": 3,
        "concatenation": 3, "pad": 3, "transpose": 5, "leaky_relu": 2, "relu": 3, "mean": 3,
        "AVERAGE_POOL_2D_SAME_none": 3, "quantize": 2, "dequantize": 3,
    }  # fmt: skip
    for name, version in wanted.items():
        case = CASES[name](np.random.default_rng(0))
        assert versions(write(case)) == [(case.operator.kind, version)], name


def test_the_bias_is_int64() -> None:
    """And is needed: it is beyond 32 bits."""
    case = CASES["conv_none"](np.random.default_rng(0))
    bias = np.full(16, 2**33, np.int64)
    output = wide(case.operator.output.scale * 2.0**12)
    case = Case(dataclasses.replace(case.operator, bias=bias, output=output), case.shapes)
    inputs = random_inputs(case, 2, np.random.default_rng(1))
    expected = run(write(case), inputs, OpResolverType.AUTO)
    assert np.abs(expected).min() > 100
    np.testing.assert_array_equal(computed(case, inputs), expected)


def _operator(kind: str, *grids: Quantization, **attributes: object) -> Operator:
    return Operator(kind, grids[:-1], grids[-1], attributes)


NARROW = Quantization(0.1, 3)
SIXTEEN = wide(1e-4)
DENSE = linear("FULLY_CONNECTED", (40, 16), (1,), (40,))(np.random.default_rng(0)).operator
WRONG = {
    # Accepted by LiteRT, and wrong in silence.
    "PRELU": (_operator("PRELU", SIXTEEN, SIXTEEN), "wrongly"),
    "dense of 8 to 16": (dataclasses.replace(DENSE, inputs=(NARROW,)), "one width.*wrongly"),
    "depthwise of 4": (
        dataclasses.replace(
            linear(
                "DEPTHWISE_CONV_2D", (3, 3, 8, 1), (2, 3), (9, 11, 8),
                strides=[1, 1], padding="SAME",
            )(np.random.default_rng(0)).operator,
            kernel=np.ones((3, 3, 8, 1), np.int8),
            kernel_grid=grids.kernel(4),
        ),
        "less than 8 bits",
    ),
    # Not taken.
    **{kind: (_operator(kind, SIXTEEN, SIXTEEN), "has none") for kind in (
        "ELU", "HARD_SWISH", "RELU_N1_TO_1", "L2_NORMALIZATION", "DEPTH_TO_SPACE", "EXP", "LOG",
        "SPACE_TO_DEPTH", "SQUARED_DIFFERENCE",
    )},
    "conv of 16 to 8": (dataclasses.replace(DENSE, kind="CONV_2D", output=NARROW), "one width"),
    "zero point": (_operator("RELU", Quantization(0.1, 5, 16), SIXTEEN), "zero point"),
    "logistic": (_operator("LOGISTIC", SIXTEEN, SIXTEEN), "must be on"),
    "logistic at a power of two": (_operator("LOGISTIC", wide(2**-12), UNIT), "kernels differ"),
    "tanh of much": (_operator("TANH", wide(10.0), UNIT), "beyond 32 bits"),
    "product beyond": (_operator("MUL", wide(0.1), wide(0.1), wide(1e-3)), "output's range"),
    "sum beyond": (_operator("ADD", wide(1.0), wide(1.0), wide(1e-5)), "output's range"),
    "requantized beyond": (_operator("QUANTIZE", wide(1.0), wide(1e-5)), "beyond 32 bits"),
    "sums beyond": (dataclasses.replace(DENSE, output=wide(1e-12)), "output's range"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_refused(name: str) -> None:
    operator, reason = WRONG[name]
    with pytest.raises(ExportError, match=f"Layer 'mine'.*{operator.kind}.*{reason}.*int8"):
        widths.require("mine", operator)
    assert problem(operator) is not None


def test_no_kernel_is_made_up() -> None:
    with pytest.raises(RewriterError, match="No integer kernel for 'ELU' in 16 bits"):
        integer.compute(_operator("ELU", SIXTEEN, SIXTEEN), np.zeros((1, 2), np.int32))


def test_tables_are_as_far_off_as_is_allowed_for() -> None:
    """Of what each stands for, on the whole grid; the most that training and file may differ by."""
    q = np.arange(-(2**15), 2**15, dtype=np.int32)
    functions = {
        "LOGISTIC": lambda x: 1 / (1 + np.exp(-x)),
        "TANH": np.tanh,
        "GELU": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    }
    for kind, function in functions.items():
        for scale in (1e-5, 1.7e-4, 3e-4, 7e-4):
            source = wide(scale)
            output = wide(scale * 1.01) if kind == "GELU" else UNIT
            operator = _operator(kind, source, output, approximate=True)
            found = integer.compute(operator, q[None]).numpy()[0]
            off = np.abs(found - function(q * source.scale) / output.scale)
            off = off[np.abs(function(q * source.scale) / output.scale) < 2**15 - 1].max()
            allowed = integer_wide_limits.table_steps(operator, (None, len(q)))
            assert off <= 1 + allowed, (kind, scale)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_softmax_is_as_far_off_as_is_allowed_for(classes: int) -> None:
    rng = np.random.default_rng(classes)
    worst = 0.0
    for scale in (1e-5, 3e-4, 1e-3):
        source = wide(scale)
        operator = _operator("SOFTMAX", source, UNIT)
        q = rng.integers(-(2**15), 2**15, (500, classes)).astype(np.int32)
        exact = np.exp((q - q.max(-1, keepdims=True)) * source.scale)
        exact /= exact.sum(-1, keepdims=True)
        found = integer.compute(operator, q).numpy()
        worst = max(worst, float(np.abs(found - exact * 2**15).max()))
    assert worst <= 1 + integer_wide_limits.table_steps(operator, (None, classes))
