"""What a function computes, as the TensorFlow operations that it runs.

Both Kerases run TensorFlow's operations in the end, whatever a function is written with: its own
functions, those of ``keras.ops``, or operators of Python. So a function is read the same way for
both, on ordinary tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.grid import BYTES
from rewriter.keras_compat import private_tensorflow
from rewriter.keras_compat.pure_functions import words

# Nodes that hand on what they are given.
_SAME = frozenset({"Identity", "StopGradient", "Snapshot", "NoOp", "EnsureShape"})


# What may make a constant: the same result whenever it is run. Tables of positions, biases of
# windows and the like are made of variables so.
_FOLDED = words(
    """Abs AddN AddV2 Add Atan BatchMatMul BatchMatMulV2 BroadcastTo Cast Ceil ClipByValue ConcatV2
    Const Cos Cumsum Div DivNoNan Einsum Equal Erf Exp ExpandDims Fill Floor FloorDiv FloorMod
    GatherNd GatherV2 Greater GreaterEqual Identity Less LessEqual LinSpace Log Log1p LogicalAnd
    LogicalNot LogicalOr MatMul MatrixBandPart Max Maximum Mean Min Minimum MirrorPad Mul Neg
    NotEqual OneHot OnesLike Pack Pad PadV2 Pow Prod Range ReadVariableOp RealDiv Reciprocal Relu
    Reshape ResizeBicubic ResizeBilinear ResizeNearestNeighbor ReverseV2 Roll Round Rsqrt Select
    SelectV2 Shape Sigmoid Sign Sin Slice Softmax Softplus Split SplitV Sqrt Square
    SquaredDifference Squeeze StopGradient StridedSlice Sub Sum Tan Tanh Tile Transpose Unpack
    ZerosLike"""
)

# Each element of the output is a function of the same element of the inputs.
_ELEMENTWISE = words(
    """Abs Acos Acosh Add AddV2 Asin Asinh Atan Atan2 Atanh Cast Ceil ClipByValue Cos Cosh Digamma
    Div DivNoNan Elu Equal Erf Erfc Erfinv Exp Expm1 Floor FloorDiv FloorMod Greater GreaterEqual
    Inv LeakyRelu Less LessEqual Lgamma Log Log1p LogicalAnd LogicalNot LogicalOr Maximum Minimum
    Mod Mul MulNoNan Neg NotEqual OnesLike Pow RealDiv Reciprocal Relu Relu6 Rint Round Rsqrt Select
    SelectV2 Selu Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Square SquaredDifference Sub Tan Tanh
    Xdivy Xlog1py Xlogy ZerosLike"""
)


# What these do to a constant that is repeated for every sample, they do to one of a single sample.
_BY_SAMPLE = _ELEMENTWISE | {"ConcatV2"}
_BYTES = tuple(tf.as_dtype(name).as_datatype_enum for name in BYTES)


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation on what depends on the function's arguments.

    Attributes:
      kind: its name in TensorFlow.
      inputs: the index of an argument or of an earlier node (see :attr:`Trace.nodes`) for each
        input, or a constant.
      attributes: its attributes.
    """

    kind: str
    inputs: tuple[int | np.ndarray, ...]
    attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trace:
    """A function of one result.

    Attributes:
      arguments: how many it has; these are the values 0, 1, ...
      nodes: in the order of execution; they make the values after those.
      result: which value is returned.
      run: the function, of as many float32 tensors.
      stops: whether its gradient stops somewhere inside, so that it is not that of its values.
    """

    arguments: int
    nodes: tuple[Node, ...]
    result: int
    run: Callable[..., Any]
    stops: bool = False

    @property
    def elementwise(self) -> bool:
        """Whether it is a function of a number, applied to every element of its argument."""
        return self.of_channels(1)

    def of_channels(self, count: int) -> bool:
        """Whether it is one such function for each of ``count`` channels, the last axis."""
        constants = [v for node in self.nodes for v in node.inputs if isinstance(v, np.ndarray)]
        return (
            self.arguments == 1
            and all(node.kind in _ELEMENTWISE for node in self.nodes)
            and all(v.size == 1 or v.size == v.shape[-1] == count for v in constants)
        )


def trace(
    function: Callable[..., Any], shapes: Sequence[Any], dtypes: Sequence[str] = ()
) -> Trace | None:
    """The operations of a function of tensors of these shapes, variables as constants.

    ``dtypes``: of the tensors; none: all are float32.

    Returns:
      None if it cannot be run on such tensors, has another number of results than one, or holds
      what depends on more than its arguments.
    """
    specs = [
        tf.TensorSpec(shape, dtype, name=f"argument_{i}")
        for i, (shape, dtype) in enumerate(
            zip(shapes, dtypes or ["float32"] * len(shapes), strict=True)
        )
    ]
    try:
        wrapped = tf.compat.v1.wrap_function(lambda *x: tf.nest.flatten(function(*x)), specs)
        frozen, graph = wrapped, wrapped.graph.as_graph_def()
        if wrapped.captured_inputs or graph.library.function:
            # Variables, and functions that are called; without them it is the graph already.
            frozen, graph = private_tensorflow.with_constants(wrapped)
    except Exception:
        return None  # a function of a user's: whatever it raises, it stays what it is
    if len(frozen.outputs) != 1:
        return None
    given = [t.name.partition(":")[0] for t in frozen.inputs]
    return _read(graph, given, frozen.outputs[0].name, wrapped)


def _read(graph: Any, given: Sequence[str], output: str, run: Callable[..., Any]) -> Trace | None:
    by_name = {node.name: node for node in graph.node}
    sized: set[str] = set()  # what depends on the sizes of arguments only
    numbers: dict[str, int] = {f"{name}:0": i for i, name in enumerate(given)}
    depends = set(given)
    nodes: list[Node] = []
    stops = False
    constants = _Constants(graph)
    for name in _ordered(by_name, output.partition(":")[0]):
        node = by_name[name]
        inputs = [_tensor(value) for value in node.input if not value.startswith("^")]
        if name in depends:
            continue
        if not any(value.partition(":")[0] in depends | sized for value in inputs):
            if node.op not in _FOLDED:
                return None
            continue
        sources = {v.partition(":")[0] for v in inputs} & (depends | sized)
        if node.op == "Shape" or (sources and sources <= sized):
            if node.op not in _FOLDED:
                return None
            sized.add(name)
            continue
        depends.add(name)
        stops = stops or node.op == "StopGradient"
        if node.op in _SAME or (node.op == "Cast" and _keeps(node)):
            numbers[f"{name}:0"] = numbers[inputs[0]]
            continue
        read: list[int | np.ndarray] = []
        for value in inputs:
            found = numbers.get(value)
            if found is None and value.partition(":")[0] in depends:
                return None  # the second output of an operation
            if value.partition(":")[0] in sized:
                row = constants.repeated(value, given)
                if row is None or node.op not in _BY_SAMPLE:
                    return None
                read.append(row)
                continue
            read.append(constants.of(value) if found is None else found)
        attributes = {key: _attribute(value) for key, value in node.attr.items()}
        numbers[f"{name}:0"] = len(given) + len(nodes)
        nodes.append(Node(node.op, tuple(read), attributes))
    if output not in numbers:
        return None  # it is a constant

    def call(*x: Any) -> Any:
        return run(*x)[0]

    return Trace(len(given), tuple(nodes), numbers[output], call, stops)


def _keeps(cast: Any) -> bool:
    """Whether a cast keeps every number: into the same type, or from bytes to float32."""
    source, target = cast.attr["SrcT"].type, cast.attr["DstT"].type
    bytes_to_float = source in _BYTES and target == tf.float32.as_datatype_enum
    return bool(source == target or bytes_to_float)


def _ordered(by_name: dict[str, Any], last: str) -> list[str]:
    """The nodes that ``last`` needs, each after those that it reads."""
    order: dict[str, None] = {}
    stack = [(last, False)]
    while stack:
        name, done = stack.pop()
        if done:
            order[name] = None
        elif name not in order:
            stack.append((name, True))
            reads = [_tensor(v).partition(":")[0] for v in by_name[name].input if v[:1] != "^"]
            stack += [(value, False) for value in reads if value not in order]
    return list(order)


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"


class _Constants:
    """The values of a graph that depend on no argument."""

    def __init__(self, graph: Any):
        self._graph = graph
        self._known: dict[str, np.ndarray] = {}

    def of(self, name: str) -> np.ndarray:
        if name not in self._known:
            node = next(n for n in self._graph.node if n.name == name.partition(":")[0])
            if node.op == "Const":
                self._known[name] = tf.make_ndarray(node.attr["value"].tensor)
            else:
                self._known[name] = self._run(name, {})
        return self._known[name]

    def repeated(self, name: str, arguments: Sequence[str]) -> np.ndarray | None:
        """One row of what is the same for every sample; None if it is something else.

        Args:
          name: of a tensor that depends on the sizes of the arguments.
          arguments: the names of those.
        """
        nodes = [node for node in self._graph.node if node.name in arguments]
        sizes = {n.name: [d.size for d in n.attr["shape"].shape.dim] for n in nodes}
        if any(not known or -1 in known[1:] for known in sizes.values()):
            return None
        dtypes = {n.name: tf.as_dtype(n.attr["dtype"].type).as_numpy_dtype for n in nodes}
        one, several = (
            self._run(name, {n: np.zeros((b, *sizes[n][1:]), dtypes[n]) for n in sizes})
            for b in (1, 3)
        )
        if one.dtype.kind != "f" or one.shape[:1] != (1,):
            return None
        return one if np.array_equal(np.repeat(one, 3, axis=0), several) else None

    def _run(self, name: str, given: Mapping[str, np.ndarray]) -> np.ndarray:
        def fetch() -> Any:
            inputs = {f"{key}:0": tf.constant(value) for key, value in given.items()}
            return tf.graph_util.import_graph_def(self._graph, inputs, [name], name="fold")

        return np.asarray(tf.compat.v1.wrap_function(fetch, [])()[0])


def _attribute(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "s":
        return value.s.decode(errors="replace")  # some hold bytes that are no text
    if kind == "list":
        return list(value.list.i) or list(value.list.f)
    return getattr(value, kind) if kind in ("i", "f", "b", "type") else None
