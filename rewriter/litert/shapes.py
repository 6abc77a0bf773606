"""The shapes of LiteRT operators' outputs, from those of their inputs.

Every function takes the operator and the shapes of the activations that it reads, batch first, all
sizes known, and returns the shape of its output. What LiteRT would refuse, or misread, raises
``ValueError`` with what is wrong; :mod:`rewriter.litert.validation` adds the Keras layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rewriter.litert.integer_spatial import slice_arguments
from rewriter.program import Operator

Shape = tuple[int, ...]

_MOST_DIMENSIONS = 5  # LiteRT's broadcasting kernels take no more


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _rank(shape: Shape, *ranks: int) -> None:
    _require(len(shape) in ranks, f"it takes tensors of rank {ranks[0]}, not of shape {shape}")


def same(operator: Operator, inputs: list[Shape]) -> Shape:
    """Element by element."""
    return inputs[0]


def broadcast(operator: Operator, inputs: list[Shape]) -> Shape:
    """NumPy's rule, for one or two activations and a constant."""
    operands = [*inputs]
    if "constant" in operator.attributes:
        operands.append(np.shape(operator.attributes["constant"]))
    _require(len(operands) == 2, f"it takes two operands, not {len(operands)}")
    _require(max(map(len, operands)) <= _MOST_DIMENSIONS, f"the ranks are too large: {operands}")
    try:
        return tuple(int(size) for size in np.broadcast_shapes(*operands))
    except ValueError:
        raise ValueError(f"the shapes {operands[0]} and {operands[1]} do not fit") from None


def _windows(
    operator: Operator, sizes: Sequence[int], window: Sequence[int], dilations: Sequence[int]
) -> Shape:
    found = []
    for n, k, stride, dilation in zip(
        sizes, window, operator.attributes["strides"], dilations, strict=True
    ):
        covered = (k - 1) * dilation + 1
        if operator.attributes["padding"] == "SAME":
            found.append(-(-n // stride))
        else:
            _require(covered <= n, f"a window of {covered} is larger than the {n} pixels there are")
            found.append((n - covered) // stride + 1)
    return tuple(found)


def _kernel(operator: Operator, rank: int) -> np.ndarray:
    _require(operator.kernel is not None, "it needs a kernel")
    kernel = np.asarray(operator.kernel)
    _require(kernel.ndim == rank, f"its kernel's rank must be {rank}, not that of {kernel.shape}")
    return kernel


def convolution(operator: Operator, inputs: list[Shape]) -> Shape:
    """``CONV_2D``: kernel HWIO, grouped where I is a divisor of the channels."""
    (shape,) = inputs
    _rank(shape, 4)
    kernel = _kernel(operator, 4)
    height, width, depth, filters = kernel.shape
    groups, rest = divmod(shape[3], depth)
    fits = rest == 0 and groups > 0 and filters % groups == 0
    _require(fits, f"a kernel of shape {kernel.shape} does not fit {shape[3]} input channels")
    dilations = operator.attributes.get("dilations", (1, 1))
    return (shape[0], *_windows(operator, shape[1:3], (height, width), dilations), filters)


def depthwise_convolution(operator: Operator, inputs: list[Shape]) -> Shape:
    """``DEPTHWISE_CONV_2D``: kernel HWIM."""
    (shape,) = inputs
    _rank(shape, 4)
    kernel = _kernel(operator, 4)
    fits = kernel.shape[2] == shape[3]
    _require(fits, f"a kernel of shape {kernel.shape} does not fit {shape[3]} input channels")
    dilations = operator.attributes.get("dilations", (1, 1))
    windows = _windows(operator, shape[1:3], kernel.shape[:2], dilations)
    return (shape[0], *windows, kernel.shape[2] * kernel.shape[3])


def transposed_convolution(operator: Operator, inputs: list[Shape]) -> Shape:
    """``TRANSPOSE_CONV``: kernel HWOI; the output's shape is given."""
    (shape,) = inputs
    _rank(shape, 4)
    kernel = _kernel(operator, 4)
    fits = kernel.shape[3] == shape[3]
    _require(fits, f"a kernel of shape {kernel.shape} does not fit {shape[3]} input channels")
    height, width, filters = (int(n) for n in list(operator.attributes["output_shape"])[-3:])
    back = _windows(operator, (height, width), kernel.shape[:2], (1, 1))
    _require(
        back == tuple(shape[1:3]) and filters == kernel.shape[2],
        f"an output of {(height, width, filters)} does not come of an input of {shape}",
    )
    return (shape[0], height, width, filters)


def fully_connected(operator: Operator, inputs: list[Shape]) -> Shape:
    """``FULLY_CONNECTED``: over the last axis; without ``keep_num_dims`` all else is one axis."""
    (shape,) = inputs
    kernel = _kernel(operator, 2)
    depth, units = kernel.shape
    if operator.attributes.get("keep_num_dims", False):
        fits = shape[-1] == depth
        _require(fits, f"a kernel of shape {kernel.shape} does not fit an input of shape {shape}")
        return (*shape[:-1], units)
    rows, rest = divmod(math.prod(shape), depth)
    fits = rest == 0 and rows > 0
    _require(fits, f"a kernel of shape {kernel.shape} does not fit an input of shape {shape}")
    return (rows, units)


def pool(operator: Operator, inputs: list[Shape]) -> Shape:
    """``AVERAGE_POOL_2D`` and ``MAX_POOL_2D``."""
    (shape,) = inputs
    _rank(shape, 4)
    windows = _windows(operator, shape[1:3], operator.attributes["pool_size"], (1, 1))
    return (shape[0], *windows, shape[3])


def reduce(operator: Operator, inputs: list[Shape]) -> Shape:
    """``MEAN`` and ``REDUCE_MAX``, over any axes but the batch."""
    (shape,) = inputs
    axes = {_axis(axis, shape) for axis in operator.attributes["axes"]}
    _require(0 not in axes, "the batch cannot be reduced")
    if operator.attributes.get("keepdims", False):
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _axis(axis: int, shape: Shape) -> int:
    _require(-len(shape) <= axis < len(shape), f"there is no axis {axis} in the shape {shape}")
    return axis % len(shape)


def reshape(operator: Operator, inputs: list[Shape]) -> Shape:
    """``RESHAPE``; ``shape`` leaves out the batch, of which a sample may have several rows."""
    (shape,) = inputs
    sizes = tuple(int(size) for size in operator.attributes["shape"])
    rows, rest = divmod(math.prod(shape), math.prod(sizes) or 1)
    _require(rest == 0, f"a tensor of shape {shape} does not divide into parts of shape {sizes}")
    return (rows, *sizes)


def concatenation(operator: Operator, inputs: list[Shape]) -> Shape:
    """``CONCATENATION`` along any axis but the batch."""
    axis = _axis(int(operator.attributes["axis"]), inputs[0])
    _require(axis != 0, "the batch cannot be concatenated")
    rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in inputs}
    _require(len(rests) == 1, f"the shapes {inputs} do not fit along axis {axis}")
    total = sum(shape[axis] for shape in inputs)
    return (*inputs[0][:axis], total, *inputs[0][axis + 1 :])


def pad(operator: Operator, inputs: list[Shape]) -> Shape:
    """``PAD``; one pair of numbers an axis."""
    (shape,) = inputs
    paddings = [tuple(map(int, pair)) for pair in operator.attributes["paddings"]]
    fits = len(paddings) == len(shape) <= _MOST_DIMENSIONS and paddings[0] == (0, 0)
    _require(fits, f"paddings {paddings} do not fit a tensor of shape {shape}")
    _require(min(map(min, paddings)) >= 0, f"paddings {paddings} cut off")
    return tuple(size + sum(pair) for size, pair in zip(shape, paddings, strict=True))


def transpose(operator: Operator, inputs: list[Shape]) -> Shape:
    """``TRANSPOSE``; the batch stays first."""
    (shape,) = inputs
    perm = [int(axis) for axis in operator.attributes["perm"]]
    fits = sorted(perm) == list(range(len(shape))) and perm[0] == 0
    _require(fits, f"axes in the order {perm} do not fit a tensor of shape {shape}")
    return tuple(shape[axis] for axis in perm)


def strided_slice(operator: Operator, inputs: list[Shape]) -> Shape:
    """``STRIDED_SLICE``; all lists include the batch."""
    (shape,) = inputs
    arguments = slice_arguments(operator)
    for mask in ("ellipsis_mask", "new_axis_mask"):
        _require(not arguments[mask], f"{mask} is not for tensors of integers")
    places = [arguments[name] for name in ("begin", "end", "strides")]
    fits = all(len(place) == len(shape) for place in places) and len(shape) <= _MOST_DIMENSIONS
    _require(fits, f"slices {places} do not fit a tensor of shape {shape}")
    found = []
    for axis, (size, begin, end, stride) in enumerate(zip(shape, *places, strict=True)):
        if arguments["shrink_axis_mask"] >> axis & 1:
            continue
        start = None if arguments["begin_mask"] >> axis & 1 else int(begin)
        stop = None if arguments["end_mask"] >> axis & 1 else int(end)
        found.append(len(range(*slice(start, stop, int(stride)).indices(size))))
    return tuple(found)


def resize(operator: Operator, inputs: list[Shape]) -> Shape:
    """Of images, to the operator's size."""
    (shape,) = inputs
    _rank(shape, 4)
    height, width = (int(size) for size in operator.attributes["size"])
    return (shape[0], height, width, shape[3])
