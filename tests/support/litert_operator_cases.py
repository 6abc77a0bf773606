"""The table of operators that the tests convert and run: builders of ``Case`` by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from litert_single_op import Case, linear, random_quantization, with_output
from rewriter.program import Operator, Quantization, whole

IMAGE = (9, 11, 8)
PROBABILITY = Quantization(1 / 256, -128)

Builder = Callable[[np.random.Generator], Case]
CASES: dict[str, Builder] = {}


def _conv(shape, channels=8, activation="none", size=(9, 11), bias=True, **attributes):
    attributes = {"strides": [1, 1], "padding": "SAME", "dilations": [1, 1], **attributes}
    return lambda rng: Case(
        linear("CONV_2D", rng, shape, (3,), attributes, activation, bias), [(*size, channels)]
    )


def _depthwise(shape, activation="none", **attributes):
    attributes = {"strides": [1, 1], "padding": "SAME", "dilations": [1, 1], **attributes}
    return lambda rng: Case(
        linear("DEPTHWISE_CONV_2D", rng, shape, (2, 3), attributes, activation), [IMAGE]
    )


def _dense(shape, leading=(), activation="none", bias=True):
    attributes = {"keep_num_dims": True} if leading else {}
    return lambda rng: Case(
        linear("FULLY_CONNECTED", rng, shape, (1,), attributes, activation, bias),
        [(*leading, shape[0])],
    )


def _transposed(kernel, output, stride, padding, activation="none", bias=True):
    attributes = {"strides": [stride, stride], "padding": padding, "output_shape": output}
    return lambda rng: Case(
        linear("TRANSPOSE_CONV", rng, kernel, (2,), attributes, activation, bias), [IMAGE], batch=2
    )


def _same(kind, shapes=(IMAGE,), activation="none", **attributes):
    """An operator that keeps its input's quantization."""

    def build(rng):
        grid = random_quantization(rng)
        return Case(Operator(kind, (grid,) * len(shapes), grid, attributes, activation), [*shapes])

    return build


def _rescaled(kind, ratio, zero=None, **attributes):
    """An operator on one tensor with an output scale of its own, ``ratio`` of the input's."""

    def build(rng):
        grid = random_quantization(rng, low=0.01, high=0.1)
        output = with_output(grid, ratio, int(rng.integers(-128, 128)) if zero is None else zero)
        return Case(Operator(kind, (grid,), output, attributes), [IMAGE])

    return build


def _fixed(kind, output, shape=IMAGE, high=0.2):
    return lambda rng: Case(Operator(kind, (random_quantization(rng, high=high),), output), [shape])


def _binary(kind, shapes=(IMAGE, IMAGE), activation="none", spread=1.0):
    """``spread``: how much finer the second input's scale is than another random one."""

    def build(rng):
        a, b = random_quantization(rng), random_quantization(rng)
        b = with_output(b, 1 / spread, b.zero_point)
        scale = 90 * a.scale * b.scale if kind == "MUL" else 1.2 * max(a.scale, b.scale)
        output = Quantization(float(np.float32(scale)), int(rng.integers(-128, 128)))
        return Case(Operator(kind, (a, b), output, {}, activation), [*shapes])

    return build


def _matmul(shapes, transposed=False, zero=None):
    """``zero``: the zero point of the second operand."""

    def build(rng):
        a, b = random_quantization(rng), random_quantization(rng)
        b = b if zero is None else Quantization(b.scale, zero)
        scale = float(np.float32(300 * a.scale * b.scale))
        output = Quantization(scale, int(rng.integers(-128, 128)))
        return Case(Operator("BATCH_MATMUL", (a, b), output, {"transposed": transposed}), shapes)

    return build


def _multiplied(ratio):
    """A product whose steps are ``ratio`` of the output's, which is saturated nearly always."""

    def build(rng):
        a, b = (random_quantization(rng, low=0.05, high=0.2) for _ in range(2))
        output = Quantization(float(np.float32(a.scale * b.scale / ratio)), 5)
        return Case(Operator("MUL", (a, b), output), [IMAGE, IMAGE])

    return build


def _with_constant(kind, shape):
    def build(rng):
        a, b = random_quantization(rng), random_quantization(rng)
        scale = 90 * a.scale * b.scale if kind == "MUL" else 1.2 * max(a.scale, b.scale)
        attributes = {
            "constant": rng.uniform(*b.range, shape).tolist(),
            "constant_quantization": {"scale": b.scale, "zero_point": b.zero_point},
        }
        output = Quantization(float(np.float32(scale)), int(rng.integers(-128, 128)))
        return Case(Operator(kind, (a,), output, attributes), [IMAGE])

    return build


def _prelu(shape):
    def build(rng):
        a = random_quantization(rng)
        attributes = {
            "constant": rng.uniform(-0.5, 0.5, shape).tolist(),
            "constant_quantization": {"scale": 0.004, "zero_point": 0},
        }
        return Case(Operator("PRELU", (a,), with_output(a, 0.6, -100), attributes), [IMAGE])

    return build


def _border(kind):
    grid = random_quantization
    if kind == "QUANTIZE":
        return lambda rng: Case(Operator(kind, (None,), grid(rng)), [IMAGE])
    return lambda rng: Case(Operator(kind, (grid(rng),), None), [IMAGE])


def _root(kind):
    """Of integers from the zero point on: LiteRT computes no others."""

    def build(rng):
        source = Quantization(random_quantization(rng).scale, -128)
        largest = (source.scale * 255) ** 0.5 if kind == "SQRT" else source.scale**-0.5
        output = Quantization(float(np.float32(largest / rng.uniform(150, 255))), -128)
        return Case(Operator(kind, (source,), output), [IMAGE])

    return build


def _place(kind, axis, dtype):
    """Of integers of few values, so that the largest and the smallest are there several times."""

    def build(rng):
        return Case(
            Operator(kind, (random_quantization(rng),), whole(dtype), {"axis": axis}), [IMAGE]
        )

    return build


def _whole(kind, given, made, shapes=(IMAGE,), **attributes):
    """An operator on whole numbers."""
    output = None if made is None else whole(made)
    sources = (whole(given),) * len(shapes)
    return lambda rng: Case(Operator(kind, sources, output, attributes), [*shapes])


def _gather(dtype, bits=8):
    """Rows of a table, by numbers that it has."""

    def build(rng):
        output = random_quantization(rng) if bits == 8 else Quantization(2e-4, 0, 16)
        table = rng.integers(output.qmin, output.qmax + 1, (30, 5), f"int{bits}")
        operator = Operator("GATHER", (whole(dtype),), output, {"table": table})
        return Case(operator, [(7,)], most=30)

    return build


def _one_hot(dtype, bits=8):
    """Of numbers beyond its depth too."""

    def build(rng):
        output = random_quantization(rng) if bits == 8 else Quantization(2e-4, 0, 16)
        attributes = {"depth": 6, "on": int(output.qmax), "off": int(output.qmin) + 3}
        return Case(Operator("ONE_HOT", (whole(dtype),), output, attributes), [(7,)], most=9)

    return build


def _wide(kind, ratios, shapes=(IMAGE,), constant=None, narrow=None, **attributes):
    """Of int16 tensors, whose scales and then the output's are ``ratios`` of a random one.

    ``constant``: shape of a constant second operand. ``narrow``: which of the tensors is int8.
    """

    def build(rng):
        unit = np.exp(rng.uniform(np.log(1e-5), np.log(1e-3)))
        grids = [Quantization(float(np.float32(unit * ratio)), 0, 16) for ratio in ratios]
        if narrow is not None:
            grids[narrow] = Quantization(grids[narrow].scale, int(rng.integers(-128, 128)))
        given = dict(attributes)
        if constant is not None:
            own = Quantization(float(np.float32(unit * 1.3)), 0, 16)
            given["constant"] = rng.uniform(*own.range, constant).tolist()
            given["constant_quantization"] = {"scale": own.scale, "zero_point": 0, "bits": 16}
        *sources, output = grids
        if kind in ("MUL", "BATCH_MATMUL"):
            second = own if constant is not None else sources[-1]
            step = 2e4 * sources[0].scale * second.scale * ratios[-1]
            output = Quantization(float(np.float32(step)), 0, 16)
        if kind == "SQRT":
            output = Quantization(float(np.float32((sources[0].scale / 32767) ** 0.5)), 0, 16)
        if kind == "RSQRT":
            lowest = sources[0].scale * 512
            output = Quantization(float(np.float32(lowest**-0.5 / 32767)), 0, 16)
        return Case(Operator(kind, tuple(sources), output, given), [*shapes])

    return build


ROW, REST = (7, 33), (7, 1)
CASES |= {
    "wide_quantize": _wide("QUANTIZE", (128, 1), narrow=0),
    "wide_quantize_finer": _wide("QUANTIZE", (100, 1), narrow=0),
    "wide_quantize_back": _wide("QUANTIZE", (1, 200), narrow=1),
    "wide_mean": _wide("MEAN", (1, 1), [(40, 33)], axes=[2], keepdims=True),
    "wide_mean_long": _wide("MEAN", (1, 1), [(30, 3000)], axes=[2], keepdims=True),
    "wide_subtract": _wide("SUB", (1, 1, 1), (ROW, REST)),
    "wide_subtract_rescaled": _wide("SUB", (1, 0.3, 1.1), (ROW, REST)),
    "wide_add": _wide("ADD", (1, 2.7, 3), (ROW, ROW)),
    "wide_add_constant": _wide("ADD", (1, 1.2), [ROW], constant=(33,)),
    "wide_multiply": _wide("MUL", (1, 2.7, 1), (ROW, REST)),
    "wide_multiply_constant": _wide("MUL", (1, 1), [ROW], constant=(33,)),
    "wide_matmul": _wide("BATCH_MATMUL", (1, 1, 1), [(7, 1, 33), (7, 1, 33)], transposed=True),
    "wide_maximum": _wide("MAXIMUM", (1.3, 1.3), [ROW], constant=()),
    "wide_root": _wide("RSQRT", (1, 1), [(40, 90)]),
    "wide_square_root": _wide("SQRT", (1, 1), [(40, 90)]),
}
HWC = (3, 3, 8, 16)
CASES |= {
    "conv": _conv(HWC),
    "conv_valid_relu": _conv(HWC, activation="relu", padding="VALID"),
    "conv_strided_relu6": _conv(HWC, activation="relu6", strides=[2, 2]),
    "conv_uneven": _conv((2, 5, 8, 7), activation="relu_n1_to_1", strides=[2, 1]),
    "conv_pointwise": _conv((1, 1, 8, 16), activation="relu"),
    "conv_dilated": _conv(HWC, dilations=[2, 3], padding="VALID"),
    "conv_dilated_same": _conv(HWC, dilations=[2, 2], activation="relu"),
    "conv_grouped": _conv((3, 3, 4, 6), activation="relu", strides=[2, 2]),
    "conv_grouped_to_one": _conv((3, 3, 1, 16)),
    "conv_1d": _conv((1, 7, 8, 16), size=(1, 31), strides=[1, 2]),
    "conv_no_bias": _conv(HWC, bias=False),
    "conv_beyond_float32": _conv((3, 3, 600, 8), channels=600, size=(5, 6)),
    "conv_grouped_beyond_float32": _conv((3, 3, 300, 8), channels=600, size=(5, 6)),
    "depthwise": _depthwise((3, 3, 8, 1)),
    "depthwise_strided_relu6": _depthwise((3, 3, 8, 1), "relu6", strides=[2, 2]),
    "depthwise_multiplier_valid": _depthwise((5, 3, 8, 2), "relu", padding="VALID"),
    "depthwise_dilated": _depthwise((3, 3, 8, 1), dilations=[2, 2]),
    "depthwise_unequal_strides": _depthwise((3, 3, 8, 1), strides=[2, 1]),
    "depthwise_as_batch_norm": _depthwise((1, 1, 8, 1), "relu"),
    "dense": _dense((40, 16)),
    "dense_rank_3": _dense((40, 16), (7,), "relu"),
    "dense_rank_4": _dense((8, 5), (3, 4), "relu6"),
    "dense_beyond_float32": _dense((3000, 16), activation="relu", bias=False),
    "transposed": _transposed((3, 3, 16, 8), [18, 22, 16], 2, "SAME"),
    "transposed_valid_relu": _transposed((3, 3, 16, 8), [19, 23, 16], 2, "VALID", "relu"),
    "transposed_no_bias_relu": _transposed((2, 2, 16, 8), [27, 33, 16], 3, "SAME", "relu", False),
    "add": _binary("ADD"),
    "add_relu": _binary("ADD", activation="relu"),
    "add_relu6": _binary("ADD", activation="relu6"),
    "add_broadcast": _binary("ADD", ((1, 1, 8), IMAGE)),
    "add_constant": _with_constant("ADD", (8,)),
    "add_builtin_kernel": _binary("ADD", spread=3e3),
    "subtract": _binary("SUB"),
    "subtract_relu": _binary("SUB", activation="relu"),
    "subtract_constant": _with_constant("SUB", (1, 1, 8)),
    "multiply": _binary("MUL"),
    "multiply_relu6": _binary("MUL", activation="relu6"),
    "multiply_broadcast": _binary("MUL", ((1, 1, 8), IMAGE)),
    "multiply_broadcast_second": _binary("MUL", (IMAGE, (1, 1, 8))),
    "multiply_constant": _with_constant("MUL", (8,)),
    "multiply_scalar": _with_constant("MUL", ()),
    "maximum": _same("MAXIMUM", (IMAGE, IMAGE)),
    "minimum": _same("MINIMUM", (IMAGE, (1, 1, 8))),
    "prelu": _prelu((1, 1, 8)),
    "prelu_everywhere": _prelu(IMAGE),
    "mean": _rescaled("MEAN", 0.2, axes=[1, 2], keepdims=False),
    "mean_keepdims": _rescaled("MEAN", 0.3, axes=[1, 2], keepdims=True),
    "mean_channels": _rescaled("MEAN", 0.5, axes=[3], keepdims=True),
    "mean_middle": _rescaled("MEAN", 0.7, axes=[-2], keepdims=False),
    "reduce_max": _same("REDUCE_MAX", axes=[1, 2], keepdims=False),
    "reduce_min": _same("REDUCE_MIN", axes=[1, 2], keepdims=True),
    **{
        f"{kind.lower()}_{axis}_{dtype}": _place(kind, axis, dtype)
        for kind in ("ARG_MAX", "ARG_MIN")
        for axis, dtype in ((1, "int32"), (3, "int32"), (2, "int64"))
    },
    "one_hot": _one_hot("int32"),
    "one_hot_int64": _one_hot("int64"),
    "gather": _gather("int32"),
    "gather_int64": _gather("int64"),
    "wide_gather": _gather("int32", 16),
    "wide_cast": lambda rng: Case(
        Operator("CAST", (Quantization(2e-4, 0, 16),), whole("int32")), [IMAGE]
    ),
    "cast": _whole("CAST", "int64", "int32"),
    "cast_of_a_grid": lambda rng: Case(
        Operator("CAST", (random_quantization(rng),), whole("int32")), [IMAGE]
    ),
    "add_whole": _whole(
        "ADD", "int32", "int32", constant=[128],
        constant_quantization={"scale": 1.0, "zero_point": 0, "bits": 32},
    ),
    "cast_to_float": _whole("CAST", "int32", None),
    "reshape_whole": _whole("RESHAPE", "int64", "int64", shape=[33, 24]),
    "transpose_whole": _whole("TRANSPOSE", "int32", "int32", perm=[0, 3, 1, 2]),
    "concatenation_whole": _whole("CONCATENATION", "int64", "int64", (IMAGE, IMAGE), axis=2),
    "slice_whole": _whole(
        "STRIDED_SLICE", "int64", "int64", begin=[0, 1, 2, 0], end=[0, 9, 0, 0],
        strides=[1, 2, 3, 1], begin_mask=9, end_mask=13,
    ),
    "pad_whole": _whole("PAD", "int32", "int32", paddings=[[0, 0], [1, 2], [0, 1], [0, 0]]),
    "depth_to_space": _same("DEPTH_TO_SPACE", block_size=2),
    "space_to_depth": _same("SPACE_TO_DEPTH", ((8, 12, 3),), block_size=2),
    "abs": _same("ABS"),
    "abs_rescaled": _rescaled("ABS", 0.7),
    "exp": _rescaled("EXP", 0.9, -100),
    "log": _rescaled("LOG", 0.9),
    "root": _root("RSQRT"),
    "square_root": _root("SQRT"),
    "squared_difference": _binary("SQUARED_DIFFERENCE"),
    "squared_difference_broadcast": _binary("SQUARED_DIFFERENCE", ((1, 1, 8), IMAGE)),
    "matmul": _matmul([(7, 40), (40, 9)]),
    "matmul_transposed": _matmul([(7, 40), (9, 40)], True),
    "matmul_as_kernel": _matmul([(3, 7, 16), (3, 16, 9)], zero=0),
    "matmul_as_kernel_transposed": _matmul([(3, 7, 16), (3, 9, 16)], True, zero=0),
    "matmul_rank_4": _matmul([(3, 7, 16), (3, 16, 9)]),
    "matmul_rank_4_transposed": _matmul([(3, 8, 16), (3, 8, 16)], True),
    "softmax": _fixed("SOFTMAX", PROBABILITY, (100,), high=0.05),
    "softmax_few": _fixed("SOFTMAX", PROBABILITY, (50, 3)),
    "l2_normalization": _fixed("L2_NORMALIZATION", Quantization(1 / 128, 0)),
    "l2_normalization_long": _fixed("L2_NORMALIZATION", Quantization(1 / 128, 0), (3, 16384)),
    "subtract_broadcast_last": _binary("SUB", (IMAGE, (9, 11, 1))),
    "mean_last_of_two": _rescaled("MEAN", 0.5, axes=[1], keepdims=True),
    "logistic": _fixed("LOGISTIC", PROBABILITY),
    "tanh": _fixed("TANH", Quantization(1 / 128, 0)),
    "leaky_relu": _rescaled("LEAKY_RELU", 0.8, alpha=0.3),
    "leaky_relu_builtin_kernel": _rescaled("LEAKY_RELU", 0.8, alpha=0.001),
    "hard_swish": _rescaled("HARD_SWISH", 0.6, -100),
    "elu": _rescaled("ELU", 0.6, -100),
    "gelu": _rescaled("GELU", 0.6, -100, approximate=False),
    "gelu_approximate": _rescaled("GELU", 0.6, -100, approximate=True),
    "relu": _same("RELU"),
    "relu_rescaled": _rescaled("RELU", 0.37),
    "relu6_rescaled": _rescaled("RELU6", 1.7),
    "relu_n1_to_1_rescaled": _rescaled("RELU_N1_TO_1", 0.9),
    "requantize": _rescaled("QUANTIZE", 0.73),
    "requantize_coarser": _rescaled("QUANTIZE", 3.1),
    "quantize": _border("QUANTIZE"),
    "dequantize": _border("DEQUANTIZE"),
    "reshape": _same("RESHAPE", shape=[33, 24]),
    "concatenation": _same("CONCATENATION", (IMAGE, (9, 11, 3)), axis=3),
    "concatenation_rows": _same("CONCATENATION", (IMAGE, IMAGE, IMAGE), axis=1),
    "pad": _same("PAD", paddings=[[0, 0], [1, 2], [0, 1], [0, 0]]),
    "pad_lowest": _same("PADV2", paddings=[[0, 0], [1, 2], [0, 1], [0, 0]]),
    "pad_lowest_rank_5": _same(
        "PADV2", ((3, 4, 5, 8),), paddings=[[0, 0], [1, 2], [0, 1], [2, 0], [0, 0]]
    ),
    "transpose": _same("TRANSPOSE", perm=[0, 3, 1, 2]),
    "transpose_rank_5": _same("TRANSPOSE", ((3, 6, 5, 8),), perm=[0, 4, 1, 3, 2]),
    "transpose_rank_6": _same("TRANSPOSE", ((3, 6, 2, 5, 8),), perm=[0, 5, 1, 3, 2, 4]),
    "mirror_pad": _same("MIRROR_PAD", paddings=[[0, 0], [3, 2], [0, 1], [0, 0]], mode="reflect"),
    "mirror_pad_twice": _same(
        "MIRROR_PAD", paddings=[[0, 0], [1, 2], [2, 3], [1, 0]], mode="symmetric"
    ),
    "mirror_pad_rank_3": _same(
        "MIRROR_PAD", ((7, 4),), paddings=[[0, 0], [2, 1], [0, 0]], mode="reflect"
    ),
    "pad_rank_5": _same("PAD", ((3, 4, 5, 8),), paddings=[[0, 0], [1, 2], [0, 1], [2, 0], [0, 0]]),
    "slice_rank_5": _same(
        "STRIDED_SLICE", ((3, 4, 5, 8),), begin=[0, 1, 2, 0, 0], end=[0, 3, 4, 4, 0],
        strides=[1, 1, 1, 2, 1], begin_mask=17, end_mask=17,
    ),
    "add_rank_5": _binary("ADD", ((2, 3, 4, 8), (2, 1, 4, 8))),
    "subtract_rank_5": _binary("SUB", ((2, 3, 4, 8), (2, 1, 4, 8))),
    "multiply_rank_5": _binary("MUL", ((2, 3, 4, 8), (2, 1, 4, 8))),
    "maximum_rank_5": _same("MAXIMUM", ((2, 3, 4, 8), (2, 1, 4, 8))),
    "multiply_finer": _multiplied(1.3),
    "slice": _same(
        "STRIDED_SLICE", begin=[0, 1, 2, 0], end=[0, 9, 0, 0], strides=[1, 2, 3, 1],
        begin_mask=9, end_mask=13,
    ),
}  # fmt: skip
for _padding in ("SAME", "VALID"):
    for _kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        CASES[f"{_kind}_{_padding}"] = _same(
            _kind, pool_size=[3, 2], strides=[2, 2], padding=_padding
        )
        CASES[f"{_kind}_{_padding}_relu"] = _same(
            _kind, activation="relu", pool_size=[2, 3], strides=[1, 2], padding=_padding
        )
CASES["AVERAGE_POOL_2D_global"] = _same(
    "AVERAGE_POOL_2D", pool_size=[9, 11], strides=[1, 1], padding="VALID"
)
for _flags in ({}, {"align_corners": True}, {"half_pixel_centers": True}):
    for _size in ([18, 22], [5, 30]):
        for _kind in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"):
            _name = f"{_kind}_{_size[0]}_{'_'.join(_flags) or 'legacy'}"
            CASES[_name] = _same(_kind, size=_size, **_flags)
