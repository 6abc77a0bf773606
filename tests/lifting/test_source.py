"""Graphs from files: both TensorFlows, frozen graphs, and files that are bad or do more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from graph_files import (
    HOSTILE,
    edit,
    first_tensorflow,
    frozen_graph,
    hostile,
    initialized,
    mutants,
    renamed_operator,
)
from rewriter import keras_compat
from rewriter.errors import LoadError
from rewriter.lifting import lift, source

FLAVOURS = [flavour for flavour in (keras_compat.TF_KERAS, keras_compat.KERAS3) if flavour]
X = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)
FIRST = ["Conv2D", "BatchNormalization", "ReLU", "DepthwiseConv2D", "BatchNormalization", "ReLU",
         "GlobalAveragePooling2D", "Dense"]  # fmt: skip


def _module(path: Path, function: Callable[..., Any], *specs: tf.TensorSpec) -> Path:
    """A SavedModel of a function of a 4 x 4 variable and inputs."""
    module = tf.Module()
    module.kernel = tf.Variable(np.arange(16, dtype=np.float32).reshape(4, 4) / 16, name="kernel")
    module.run = tf.function(lambda *x: function(module.kernel, *x), input_signature=list(specs))
    tf.saved_model.save(module, str(path), signatures=module.run)
    return path


ROW = tf.TensorSpec((None, 4), tf.float32, name="row")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return _module(tmp_path / "small", lambda kernel, x: tf.nn.relu(x @ kernel), ROW)


def _layers(model: Any) -> list[str]:
    names = [type(layer).__name__ for layer in model.layers]
    return [name for name in names if name not in ("InputLayer", "Activation")]


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda f: f.name)
@pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])
def test_first_tensorflow(flavour: Any, resource: bool, tmp_path: Path) -> None:
    run = first_tensorflow(tmp_path / "model", resource)
    model = lift.lift(tmp_path / "model", flavour)
    assert _layers(model) == FIRST
    assert not lift.of(model).kept
    np.testing.assert_allclose(model(X), run(X), rtol=0, atol=1e-6)
    assert len(model.trainable_weights) == 8
    assert len(model.non_trainable_weights) == 4


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda f: f.name)
def test_frozen_graph(flavour: Any, tmp_path: Path) -> None:
    run = frozen_graph(tmp_path / "model.pb")
    for arguments in ({}, {"inputs": ["image"], "outputs": ["scores:0"]}):
        model = lift.lift_frozen(tmp_path / "model.pb", flavour, **arguments)
        assert _layers(model) == FIRST
        np.testing.assert_allclose(model(X), run(X), rtol=0, atol=1e-6)
        assert len(model.trainable_weights) == 8


def test_part_of_a_frozen_graph(tmp_path: Path) -> None:
    """An input may be any tensor, an output too."""
    frozen_graph(tmp_path / "model.pb")
    graph = source.frozen(tmp_path / "model.pb", ["image"], ["first/Relu6"])
    assert [n.op for n in graph.nodes if n.op not in ("Const", "Identity")] == [
        "Placeholder", "Conv2D", "FusedBatchNormV3", "Relu6",
    ]  # fmt: skip
    with pytest.raises(LoadError, match=r"no tensor 'nowhere'.*'image'"):
        source.frozen(tmp_path / "model.pb", ["nowhere"])
    with pytest.raises(LoadError, match="reads 'image', which nothing is given to"):
        source.frozen(tmp_path / "model.pb", [], ["scores"])


def test_variables_keep_name_and_value(small: Path) -> None:
    graph = source.saved_model(small, "serving_default")
    ((number, variable),) = graph.variables.items()
    assert graph.nodes[number].op == "VarHandleOp"
    assert variable.name == "kernel"
    np.testing.assert_array_equal(variable.numpy(), np.arange(16).reshape(4, 4) / 16)


def test_values_are_those_that_are_restored(tmp_path: Path) -> None:
    """Not those of the same name: two variables may have one."""
    module = tf.Module()
    module.both = [tf.Variable(tf.fill((4, 4), value), name="same") for value in (1.0, 2.0)]
    module.run = tf.function(
        lambda x: x @ module.both[1] - x @ module.both[0], input_signature=[ROW]
    )
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.run)
    model = lift.lift(tmp_path / "m", FLAVOURS[0])
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(model(x), module.run(x))


@pytest.mark.parametrize("kind", HOSTILE)
def test_operators_that_do_more_are_refused(kind: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = hostile(tmp_path / "model", kind, marker)
    marker.unlink(missing_ok=True)
    with pytest.raises(LoadError, match=r"has the operator \w+ \('[^']+'\)") as caught:
        lift.lift(path, FLAVOURS[0])
    assert "model" in str(caught.value)
    assert not list(tmp_path.glob("marker*"))


def test_nothing_is_initialized(tmp_path: Path) -> None:
    """TensorFlow's loader runs what a table is filled by; that the sample is one, it shows."""
    marker = tmp_path / "marker"
    path = initialized(tmp_path / "model", marker)
    marker.unlink(missing_ok=True)
    lift.lift(path, FLAVOURS[0])
    assert not marker.exists()
    tf.saved_model.load(str(path))
    assert marker.exists()


def test_operators_of_others_are_refused(small: Path) -> None:
    with pytest.raises(LoadError, match=r"the operator MyOwnRelu .*model\.save"):
        lift.lift(edit(small, renamed_operator), FLAVOURS[0])


@pytest.mark.parametrize(
    ("spec", "function", "match"),
    [
        (tf.TensorSpec((None,), tf.string), lambda k, x: x, "strings"),
        (tf.TensorSpec(None), lambda k, x: x @ k, "unknown rank"),
        (tf.TensorSpec(()), lambda k, x: x * k, "without a batch"),
        (ROW, lambda k, x: k, "does not depend on the inputs"),
        (ROW, lambda k, x: tf.nn.dropout(x @ k, 0.5), "RandomUniform"),
    ],
    ids=["string", "rank", "scalar", "constant", "dropout"],
)
def test_signatures_that_are_no_model(spec: Any, function: Any, match: str, tmp_path: Path) -> None:
    path = _module(tmp_path / "model", function, spec)
    with pytest.raises(LoadError, match=match):
        lift.lift(path, FLAVOURS[0])


def test_training_mode_is_said(tmp_path: Path) -> None:
    def run(kernel: Any, x: Any) -> Any:
        return tf.compat.v1.nn.fused_batch_norm(x, kernel[0], kernel[1], is_training=True)[0]

    path = _module(tmp_path / "model", run, tf.TensorSpec((None, 2, 2, 4)))
    with pytest.raises(LoadError, match=r"training mode.*training=False"):
        lift.lift(path, FLAVOURS[0])


def test_signature_is_chosen(tmp_path: Path) -> None:
    module = tf.Module()
    module.twice = tf.function(lambda x: 2 * x, input_signature=[ROW])
    module.thrice = tf.function(lambda x: 3 * x, input_signature=[ROW])
    named = {"twice": module.twice, "thrice": module.thrice}
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=named)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(lift.lift(tmp_path / "m", FLAVOURS[0], "thrice")(x), 3 * x)
    with pytest.raises(LoadError, match="thrice, twice"):
        lift.lift(tmp_path / "m", FLAVOURS[0])
    with pytest.raises(LoadError, match=r"no signature 'other'.*thrice, twice"):
        lift.lift(tmp_path / "m", FLAVOURS[0], "other")


def _without(part: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        for file in (path / "variables").glob(part):
            file.unlink()

    return change


def _cut(part: str, size: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        for file in path.rglob(part):
            file.write_bytes(file.read_bytes()[:size])

    return change


def _function_calls_itself(path: Path) -> None:
    def change(proto: Any) -> None:
        for function in proto.meta_graphs[0].graph_def.library.function:
            for node in function.node_def:
                if node.op.endswith("PartitionedCall"):
                    node.attr["f"].func.name = function.signature.name

    edit(path, change)


def _waits_for_itself(path: Path) -> None:
    def change(proto: Any) -> None:
        for function in proto.meta_graphs[0].graph_def.library.function:
            for node in function.node_def:
                if node.op == "MatMul":
                    node.input[0] = next(f"{n.name}:activations:0" for n in function.node_def
                                         if n.op == "Relu")  # fmt: skip

    edit(path, change)


_DAMAGES = {
    "empty": (_cut("saved_model.pb", 0), "is empty"),
    "text": (lambda p: (p / "saved_model.pb").write_text("no proto at all"), "damaged"),
    "cut": (_cut("saved_model.pb", 900), "damaged"),
    "without saved_model.pb": (lambda p: (p / "saved_model.pb").unlink(), "No such file"),
    "without variables": (lambda p: shutil.rmtree(p / "variables"), "variables of .* cannot be"),
    "without data": (_without("*data*"), "variables of .* cannot be read"),
    "data cut": (_cut("variables.data*", 20), "variables of .* cannot be read"),
    "index cut": (_cut("variables.index", 30), "variables of .* cannot be read"),
    "calls itself": (_function_calls_itself, "calls itself"),
    "circle": (_waits_for_itself, "waits for its own output"),
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_damaged_files(damage: str, small: Path) -> None:
    change, match = _DAMAGES[damage]
    change(small)
    with pytest.raises(LoadError, match=match) as caught:
        lift.lift(small, FLAVOURS[0])
    assert "small" in str(caught.value)


def test_damaged_frozen_graph(tmp_path: Path) -> None:
    path = tmp_path / "model.pb"
    for content, match in ((b"", "holds no model"), (b"no proto at all", "damaged")):
        path.write_bytes(content)
        with pytest.raises(LoadError, match=match):
            lift.lift_frozen(path, FLAVOURS[0])
    with pytest.raises(LoadError, match="No such file"):
        lift.lift_frozen(tmp_path / "other.pb", FLAVOURS[0])


@pytest.mark.parametrize(
    "part", ["saved_model.pb", "variables.index", "variables.data-00000-of-00001"]
)
def test_mutated_files_are_refused_or_read(part: str, tmp_path: Path) -> None:
    """Reading changed files gives a graph or one error; no other exception, and no end to it."""
    first_tensorflow(tmp_path / "model", True)
    (file,) = (tmp_path / "model").rglob(part)
    content = file.read_bytes()
    read = refused = 0
    for mutant in mutants(content, 60):
        file.write_bytes(mutant)
        try:
            for name in source.signatures(tmp_path / "model"):
                source.saved_model(tmp_path / "model", name)
            read += 1
        except LoadError as error:
            assert "model" in str(error)
            refused += 1
    assert read + refused == 60
    assert refused > 0
