"""Models that are only graphs, as other tools write them, and such files gone bad."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

WRITERS = ("export", "module")
Function = Callable[[np.ndarray], np.ndarray]


def write(model: Any, how: str, path: Path) -> Path:
    """Save a Keras model as a graph: by its own ``export``, or as people write a module."""
    if how == "export":
        model.export(str(path), **({"verbose": False} if isinstance(model, keras.Model) else {}))
        return path
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name=f"given_{number}")
        for number, tensor in enumerate(model.inputs)
    ]

    def run(*inputs: Any) -> Any:
        outputs = model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
        return {f"out_{i}": value for i, value in enumerate(tf.nest.flatten(outputs))}

    module = tf.Module()
    module.variables_of_model = [getattr(v, "value", v) if isinstance(model, keras.Model) else v
                                 for v in model.variables]  # fmt: skip
    module.run = tf.function(run, input_signature=specs)
    tf.saved_model.save(module, str(path), signatures=module.run)
    return path


def _first_tensorflow(resource: bool) -> tuple[Any, Any]:
    """Convolution, fused normalization, depthwise, normalization by hand, dense; random values."""
    v1, generator = tf.compat.v1, np.random.default_rng(3)

    def variable(name: str, *shape: int, low: float = -0.5, high: float = 0.5) -> Any:
        values = generator.uniform(low, high, shape).astype(np.float32)
        return v1.get_variable(name, initializer=values, use_resource=resource)

    image = v1.placeholder(tf.float32, (None, 8, 8, 3), name="image")
    with v1.variable_scope("first"):
        x = tf.nn.conv2d(image, variable("weights", 3, 3, 3, 4), 2, "SAME")
        gamma, beta = variable("BatchNorm/gamma", 4), variable("BatchNorm/beta", 4)
        mean = variable("BatchNorm/moving_mean", 4)
        spread = variable("BatchNorm/moving_variance", 4, low=0.5, high=2)
        x, *_ = v1.nn.fused_batch_norm(x, gamma, beta, mean, spread, 1e-3, is_training=False)
        x = tf.nn.relu6(x)
    with v1.variable_scope("second"):
        x = tf.nn.depthwise_conv2d(x, variable("depthwise_weights", 3, 3, 4, 1), (1,) * 4, "SAME")
        gamma, beta = variable("BatchNorm/gamma", 4), variable("BatchNorm/beta", 4)
        mean = variable("BatchNorm/moving_mean", 4)
        spread = variable("BatchNorm/moving_variance", 4, low=0.5, high=2)
        x = tf.nn.relu6(tf.nn.batch_normalization(x, mean, spread, beta, gamma, 1e-3))
    with v1.variable_scope("logits"):
        x = tf.reduce_mean(x, (1, 2))
        x = tf.nn.bias_add(tf.matmul(x, variable("weights", 4, 5)), variable("biases", 5))
    return image, tf.nn.softmax(x, name="scores")


def first_tensorflow(path: Path, resource: bool) -> Function:
    """A SavedModel as TensorFlow 1 wrote it, with reference or resource variables.

    Returns:
      What it computes.
    """
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        image, scores = _first_tensorflow(resource)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(path), {"image": image}, {"scores": scores})
        frozen = _frozen(session)
    return lambda x: evaluate(frozen, x)


def frozen_graph(path: Path) -> Function:
    """A ``.pb`` file in which the variables are constants."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        _first_tensorflow(False)
        session.run(v1.global_variables_initializer())
        frozen = _frozen(session)
    path.write_bytes(frozen.SerializeToString())
    return lambda x: evaluate(frozen, x)


def _frozen(session: Any) -> Any:
    return tf.compat.v1.graph_util.convert_variables_to_constants(
        session, session.graph_def, ["scores"]
    )


def evaluate(definition: Any, x: np.ndarray) -> np.ndarray:
    """What a frozen graph computes, in a session of TensorFlow 1."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(definition, name="")
        found: np.ndarray = session.run("scores:0", {"image:0": x})
    return found


# What a signature may not hold, by the operator that the refusal must name. Each would leave
# ``marker`` behind if it ran.
def hostile(path: Path, kind: str, marker: Path) -> Path:
    """A SavedModel whose signature does what no model needs."""

    def written(x: Any) -> Any:
        tf.io.write_file(str(marker), tf.constant("run"))
        return x * 2

    def read(x: Any) -> Any:
        return x + tf.cast(tf.strings.length(tf.io.read_file(__file__)), tf.float32)

    def python(x: Any) -> Any:
        def run(value: Any) -> Any:
            marker.touch()
            return value

        return tf.ensure_shape(tf.numpy_function(run, [x], tf.float32), x.shape)

    def printed(x: Any) -> Any:
        tf.print(x, output_stream=f"file://{marker}")
        return x * 2

    def listed(x: Any) -> Any:
        return x + tf.cast(tf.size(tf.io.matching_files("/*")), tf.float32)

    def in_a_branch(x: Any) -> Any:
        return tf.cond(tf.reduce_sum(x) > 1e9, lambda: written(x), lambda: x)

    def saved(x: Any) -> Any:
        tf.raw_ops.SaveV2(
            prefix=str(marker), tensor_names=["x"], shape_and_slices=[""], tensors=[x]
        )
        return x * 2

    def variable(x: Any) -> Any:
        module.state.assign_add(1.0)
        return x * module.state

    functions = {"WriteFile": written, "ReadFile": read, "PyFunc": python, "PrintV2": printed,
                 "MatchingFiles": listed, "in a branch": in_a_branch, "SaveV2": saved,
                 "AssignAddVariableOp": variable}  # fmt: skip
    module = tf.Module()
    module.state = tf.Variable(1.0)
    module.run = tf.function(
        functions[kind], input_signature=[tf.TensorSpec((None, 4), tf.float32)]
    )
    tf.saved_model.save(module, str(path), signatures=module.run)
    return path


HOSTILE = {"WriteFile": "WriteFile", "ReadFile": "ReadFile", "PyFunc": "PyFunc",
           "PrintV2": "PrintV2", "MatchingFiles": "MatchingFiles", "in a branch": "WriteFile",
           "SaveV2": "SaveV2", "AssignAddVariableOp": "AssignAddVariableOp"}  # fmt: skip


def initialized(path: Path, marker: Path) -> Path:
    """A harmless signature, in a SavedModel whose objects have a file written on loading."""

    class Table(tf.saved_model.experimental.TrackableResource):  # type: ignore[misc]
        def _create_resource(self) -> Any:
            return tf.raw_ops.HashTableV2(
                key_dtype=tf.string, value_dtype=tf.int64, shared_name="table"
            )

        def _initialize(self) -> Any:
            tf.io.write_file(str(marker), tf.constant("run"))

    module = tf.Module()
    module.table = Table()
    module.kernel = tf.Variable(np.eye(4, dtype=np.float32))
    module.run = tf.function(
        lambda x: tf.matmul(x, module.kernel),
        input_signature=[tf.TensorSpec((None, 4), tf.float32)],
    )
    tf.saved_model.save(module, str(path), signatures=module.run)
    return path


def edit(path: Path, change: Callable[[Any], None]) -> Path:
    """Change the messages of a SavedModel where it lies."""
    file = path / "saved_model.pb"
    proto = SavedModel()
    proto.ParseFromString(file.read_bytes())
    change(proto)
    file.write_bytes(proto.SerializeToString())
    return path


def renamed_operator(proto: Any) -> None:
    """As a custom operator stands in a file."""
    for function in proto.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.op == "Relu":
                node.op = "MyOwnRelu"


def mutants(content: bytes, count: int) -> Iterator[bytes]:
    """Copies with bytes changed, left out, doubled or cut off."""
    generator = np.random.default_rng(zlib.crc32(content))
    for number in range(count):
        data = bytearray(content)
        places = generator.integers(0, len(data), size=int(generator.integers(1, 5)))
        kind = number % 4
        if kind == 0:
            for place in places:
                data[place] = int(generator.integers(256))
        elif kind == 1:
            del data[places[0] : places[0] + int(generator.integers(1, 40))]
        elif kind == 2:
            data[places[0] : places[0]] = data[places[-1] : places[-1] + 30]
        else:
            del data[places[0] :]
        yield bytes(data)
