"""Operators of int16 tensors with random scales: builders of ``Case`` by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from litert_single_op import Case
from rewriter.program import Operator, Quantization

IMAGE = (9, 11, 8)
LARGE = (40, 41, 8)
UNIT = Quantization(1 / 32768, 0, 16)

Builder = Callable[[np.random.Generator], Case]
CASES: dict[str, Builder] = {}


def wide(scale: float) -> Quantization:
    return Quantization(float(np.float32(scale)), 0, 16)


def random_grid(rng: np.random.Generator, low: float = 1e-5, high: float = 1e-3) -> Quantization:
    return wide(np.exp(rng.uniform(np.log(low), np.log(high))))


def linear(
    kind: str,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    image: tuple[int, ...],
    activation: str = "none",
    one_scale: bool = False,
    batch: int | None = None,
    **attributes: Any,
) -> Builder:
    """A kernel, and a bias as large as the sums; the output's scale fits."""

    def build(rng: np.random.Generator) -> Case:
        kernel = rng.integers(-127, 128, shape).astype(np.int8)
        channels = int(np.prod([shape[axis] for axis in axes]))
        scales = np.float32(rng.uniform(1, 2, channels) * 2.0**-10)
        if one_scale:
            scales[:] = scales[0]
        source = random_grid(rng)
        spread = 19000 * 73 * np.sqrt(kernel.size / channels)
        bias = rng.normal(0, spread, channels).astype(np.int64)
        step = 3 * spread * source.scale * scales.mean() / 2**15 * rng.uniform(0.7, 2)
        operator = Operator(
            kind, (source,), wide(step), attributes, activation, kernel, scales, bias
        )
        return Case(operator, [image], batch)

    return build


def binary(
    kind: str,
    shapes: tuple[tuple[int, ...], ...] = (IMAGE, IMAGE),
    activation: str = "none",
    constant: tuple[int, ...] | None = None,
    finer: float = 1.0,
) -> Builder:
    """``constant``: shape of the second operand. ``finer``: how much finer its scale is."""

    def build(rng: np.random.Generator) -> Case:
        a, b = random_grid(rng), random_grid(rng)
        b = wide(b.scale / finer)
        given: dict[str, Any] = {}
        if constant is not None:
            given["constant"] = rng.uniform(*b.range, constant).tolist()
            given["constant_quantization"] = {"scale": b.scale, "zero_point": 0, "bits": 16}
        largest = 1.2 * max(a.scale, b.scale) * rng.uniform(0.5, 2)
        output = wide(2e4 * a.scale * b.scale if kind == "MUL" else largest)
        sources = (a, b) if constant is None else (a,)
        return Case(Operator(kind, sources, output, given, activation), [*shapes])

    return build


def halves(kind: str) -> Builder:
    """Ties: the output's scale is twice the inputs'."""

    def build(rng: np.random.Generator) -> Case:
        grid = random_grid(rng)
        return Case(Operator(kind, (grid, grid), wide(grid.scale * 2), {}), [IMAGE, IMAGE])

    return build


def same(
    kind: str,
    shapes: tuple[tuple[int, ...], ...] = (IMAGE,),
    activation: str = "none",
    **attributes: Any,
) -> Builder:
    """An operator that keeps its input's grid."""

    def build(rng: np.random.Generator) -> Case:
        grid = random_grid(rng, 1e-5, 3e-4)
        operator = Operator(kind, (grid,) * len(shapes), grid, attributes, activation)
        return Case(operator, [*shapes])

    return build


def single(
    kind: str,
    output: Quantization | None = None,
    low: float = 1e-5,
    high: float = 1e-3,
    shape: tuple[int, ...] = LARGE,
    ratio: float = 0.8,
    **attributes: Any,
) -> Builder:
    """``low``, ``high``: of the input's scale; ``ratio``: the output's share of that."""

    def build(rng: np.random.Generator) -> Case:
        grid = random_grid(rng, low, high)
        own = output or wide(grid.scale * ratio)
        return Case(Operator(kind, (grid,), own, attributes), [shape])

    return build


def _from_float(rng: np.random.Generator) -> Case:
    return Case(Operator("QUANTIZE", (None,), random_grid(rng)), [LARGE])


def _to_float(rng: np.random.Generator) -> Case:
    return Case(Operator("DEQUANTIZE", (random_grid(rng),), None), [IMAGE])


PLAIN: dict[str, Any] = {"strides": [1, 1], "padding": "SAME", "dilations": [1, 1]}
STRIDED: dict[str, Any] = {"strides": [2, 2], "padding": "VALID", "dilations": [1, 1]}
CONV, DEPTHWISE, DENSE = "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"
for _activation in ("none", "relu", "relu6", "relu_n1_to_1"):
    CASES[f"conv_{_activation}"] = linear(CONV, (3, 3, 8, 16), (3,), IMAGE, _activation, **PLAIN)
CASES |= {
    "conv_strided": linear(CONV, (3, 3, 8, 16), (3,), IMAGE, "relu", **STRIDED),
    "conv_uneven": linear(CONV, (2, 5, 8, 7), (3,), IMAGE, **{**PLAIN, "strides": [2, 1]}),
    "conv_dilated": linear(CONV, (3, 3, 8, 16), (3,), IMAGE, **{**PLAIN, "dilations": [2, 2]}),
    "conv_grouped": linear(CONV, (3, 3, 4, 6), (3,), IMAGE, **PLAIN),
    "conv_one_channel": linear(CONV, (1, 1, 8, 1), (3,), IMAGE, **PLAIN),
    "conv_large_sums": linear(CONV, (3, 3, 600, 8), (3,), (5, 6, 600), **PLAIN),
    "depthwise": linear(DEPTHWISE, (3, 3, 8, 1), (2, 3), IMAGE, "relu6", **PLAIN),
    "depthwise_multiplier": linear(DEPTHWISE, (5, 3, 8, 2), (2, 3), IMAGE, **STRIDED),
    "depthwise_uneven": linear(
        DEPTHWISE, (3, 3, 8, 1), (2, 3), IMAGE, **{**PLAIN, "strides": [2, 1]}
    ),
    "dense": linear(DENSE, (40, 16), (1,), (40,), "relu"),
    "dense_one_scale": linear(DENSE, (40, 16), (1,), (40,), one_scale=True),
    "dense_rows": linear(DENSE, (40, 16), (1,), (7, 40), keep_num_dims=True),
    "dense_large_sums": linear(DENSE, (3000, 16), (1,), (3000,)),
    "transposed": linear(
        "TRANSPOSE_CONV", (3, 3, 16, 8), (2,), IMAGE, "relu", batch=2,
        strides=[2, 2], padding="SAME", output_shape=[18, 22, 16],
    ),
    "transposed_valid": linear(
        "TRANSPOSE_CONV", (3, 3, 16, 8), (2,), IMAGE, batch=2,
        strides=[2, 2], padding="VALID", output_shape=[19, 23, 16],
    ),
}  # fmt: skip
for _kind in ("ADD", "SUB", "MUL"):
    for _activation in ("none", "relu", "relu6"):
        CASES[f"{_kind}_{_activation}"] = binary(_kind, activation=_activation)
    CASES |= {
        f"{_kind}_broadcast": binary(_kind, ((1, 1, 8), IMAGE)),
        f"{_kind}_constant": binary(_kind, (IMAGE,), constant=(8,)),
        f"{_kind}_far_apart": binary(_kind, finer=3e3),
        f"{_kind}_rank_5": binary(_kind, ((2, 3, 4, 8), (2, 1, 4, 8))),
    }
# Halves, with scales that are the same or twice as large.
for _kind in ("ADD", "SUB"):
    CASES[f"{_kind}_halves"] = halves(_kind)
# One element in 100,000 shows how ADD rounds its inputs; and which are beyond the last vector.
CASES["ADD_many"] = binary("ADD", ((64, 64, 64),) * 2)
CASES["ADD_many_odd"] = binary("ADD", ((63, 67, 31),) * 2)
for _activation in ("none", "relu", "relu6"):
    for _padding in ("SAME", "VALID"):
        for _kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
            CASES[f"{_kind}_{_padding}_{_activation}"] = same(
                _kind, (IMAGE,), _activation, pool_size=[3, 2], strides=[2, 2], padding=_padding
            )
CASES["AVERAGE_POOL_2D_global"] = same(
    "AVERAGE_POOL_2D", ((64, 64, 4),), pool_size=[64, 64], strides=[1, 1], padding="VALID"
)
for _kind in ("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"):
    for _aligned, _centred in ((False, False), (True, False), (False, True)):
        for _size in ([20, 17], [4, 30]):
            CASES[f"{_kind}_{_aligned}_{_centred}_{_size[0]}"] = same(
                _kind, size=_size, align_corners=_aligned, half_pixel_centers=_centred
            )
CASES |= {
    "maximum": same("MAXIMUM", (IMAGE, IMAGE)),
    "minimum": same("MINIMUM", (IMAGE, (1, 1, 8))),
    "reduce_max": same("REDUCE_MAX", axes=[1, 2], keepdims=False),
    "reduce_min": same("REDUCE_MIN", axes=[1, 2], keepdims=True),
    "reshape": same("RESHAPE", shape=[33, 24]),
    "concatenation": same("CONCATENATION", (IMAGE, (9, 11, 3)), axis=3),
    "pad": same("PAD", paddings=[[0, 0], [1, 2], [0, 1], [0, 0]]),
    "pad_lowest": same("PADV2", paddings=[[0, 0], [1, 2], [0, 1], [0, 0]]),
    "mirror_pad": same("MIRROR_PAD", paddings=[[0, 0], [3, 2], [0, 1], [0, 0]], mode="reflect"),
    "transpose": same("TRANSPOSE", perm=[0, 3, 1, 2]),
    "transpose_rank_5": same("TRANSPOSE", ((3, 6, 5, 8),), perm=[0, 4, 1, 3, 2]),
    "slice": same(
        "STRIDED_SLICE", begin=[0, 1, 2, 0], end=[0, 9, 0, 0], strides=[1, 2, 3, 1],
        begin_mask=9, end_mask=13,
    ),
    "logistic": single("LOGISTIC", UNIT),
    "logistic_coarse": single("LOGISTIC", UNIT, 1e-3, 3),
    "logistic_fine": single("LOGISTIC", UNIT, 1e-9, 1e-6),
    "tanh": single("TANH", UNIT),
    "tanh_coarse": single("TANH", UNIT, 1e-3, 3),
    "tanh_fine": single("TANH", UNIT, 1e-9, 1e-6),
    "softmax": single("SOFTMAX", UNIT, shape=(300, 10)),
    "softmax_long": single("SOFTMAX", UNIT, shape=(50, 1000)),
    "softmax_two": single("SOFTMAX", UNIT, 1e-6, 1e-4, shape=(500, 2)),
    "softmax_coarse": single("SOFTMAX", UNIT, 1e-3, 0.1, shape=(300, 10)),
    "gelu": single("GELU", approximate=False),
    "gelu_approximate": single("GELU", approximate=True),
    "relu": single("RELU"),
    "relu6": single("RELU6"),
    "leaky_relu": single("LEAKY_RELU", alpha=0.3),
    "leaky_relu_flat": single("LEAKY_RELU", alpha=0.001, ratio=1.7),
    "leaky_relu_negative": single("LEAKY_RELU", alpha=-0.2, ratio=0.3),
    "abs": single("ABS"),
    "mean": single("MEAN", axes=[1, 2], keepdims=False, ratio=0.3),
    "mean_channels": single("MEAN", axes=[3], keepdims=True, ratio=0.3),
    "requantize": single("QUANTIZE", ratio=0.73),
    "requantize_to_half": single("QUANTIZE", ratio=2.0),
    "requantize_to_quarter": single("QUANTIZE", ratio=4.0),
    "relu_to_half": single("RELU", ratio=2.0),
    "leaky_relu_to_half": single("LEAKY_RELU", ratio=2.0, alpha=0.5),
    "mean_of_two": single("MEAN", ratio=1.0, shape=(40, 2), axes=[2], keepdims=True),
    "requantize_coarser": single("QUANTIZE", ratio=3.1),
    "quantize": _from_float,
    "dequantize": _to_float,
}  # fmt: skip
