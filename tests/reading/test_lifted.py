"""``load_model`` on SavedModels without layers: the model that comes out, and what is said of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import builders
import commands
import real_models
import rewriter
from builders import keras_of
from rewriter.cli import demo
from rewriter.errors import LoadError


def exported(model, folder, kind):
    if kind == "tf.saved_model.save":
        shape = (None, *model.inputs[0].shape[1:])
        name = model.inputs[0].name.split(":")[0]
        signature = [tf.TensorSpec(shape, tf.float32, name=name)]
        function = tf.function(lambda x: model(x, training=False), input_signature=signature)
        module = tf.Module()
        module.held, module.function = [getattr(v, "value", v) for v in model.variables], function
        if not isinstance(module.held[0], tf.Variable):
            module.held = list(model.variables)
        tf.saved_model.save(module, str(folder), signatures=function)
    elif "verbose" in type(model).export.__code__.co_varnames:
        model.export(folder, verbose=False)
    else:
        model.export(folder)
    return folder


WAYS = [
    ("tf_keras", "export", "tf_keras"),
    ("keras", "tf.saved_model.save", "keras"),
    *(
        pytest.param(*way, marks=pytest.mark.wide)
        for way in [
            ("tf_keras", "export", "keras"),
            ("tf_keras", "tf.saved_model.save", "tf_keras"),
            ("tf_keras", "tf.saved_model.save", "keras"),
            ("keras", "export", "tf_keras"),
            ("keras", "export", "keras"),
            ("keras", "tf.saved_model.save", "tf_keras"),
        ]
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("written_by", "kind", "flavour"), WAYS)
def test_the_whole_way(written_by, kind, flavour, tmp_path):
    keras = builders.fresh(keras_of(written_by))
    original = builders.randomise_all(builders.residual(keras), 3)
    folder = exported(original, tmp_path / "exported", kind)
    lifted = rewriter.load_model(folder, flavour=flavour)
    assert isinstance(lifted, keras_of(flavour).Model)
    x = builders.residual_data()
    expected = original.predict(x, verbose=0)
    found = lifted.predict(x, verbose=0)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    plans = [rewriter.plan(model) for model in (original, lifted)]
    assert [e.action for e in plans[1].entries] == [e.action for e in plans[0].entries]
    assert not plans[1].float_layers
    assert [t.name.split(":")[0] for t in lifted.inputs] == ["image"]
    # Nothing behind it knows that it was lifted.
    qat = rewriter.rewrite(lifted, calibration_data=x)
    qat.save(tmp_path / "qat.keras")
    again = rewriter.load_model(tmp_path / "qat.keras")
    file = tmp_path / "model.tflite"
    report = rewriter.export_tflite(again, file)
    other = rewriter.rewrite(original, calibration_data=x)
    assert report.ops == rewriter.export_tflite(other, tmp_path / "other.tflite").ops
    verified = rewriter.verify(again, file, x, progress=False)
    assert verified.comparison.worst is None or verified.comparison.worst.identical == 1
    assert verified.training.fault is None


def test_variables_are_the_weights(tmp_path):
    keras = builders.fresh(keras_of("tf_keras"))
    original = builders.randomise_all(builders.residual(keras), 3)
    lifted = rewriter.load_model(exported(original, tmp_path / "m", "export"), flavour="tf_keras")
    expected = builders.weights_by_name(original)
    found = builders.weights_by_name(lifted)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert len(lifted.trainable_variables) == len(original.trainable_variables)


def test_a_real_model_without_its_metadata(shared: Path, tmp_path: Path) -> None:
    """The accuracy of the integer file of a real model is the same without its layers."""
    source = shared / "models/mlperf_kws01/kws_ref_model"
    folder = tmp_path / "bare"
    shutil.copytree(source, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    from rewriter.keras_compat.private_tensorflow import SavedModel

    proto = SavedModel()
    proto.ParseFromString((folder / "saved_model.pb").read_bytes())
    for node in proto.meta_graphs[0].object_graph_def.nodes:
        if node.user_object.identifier.startswith("_tf_keras"):
            node.user_object.identifier, node.user_object.metadata = "_generic_user_object", ""
    (folder / "saved_model.pb").write_bytes(proto.SerializeToString())
    (folder / "keras_metadata.pb").unlink(missing_ok=True)
    model = next(m for name, m in real_models.MODELS.items() if "kws" in name)
    data = model.data(shared, 128)
    with np.load(shared / "datasets/mlperf_kws01/perf_kws01.npz") as test:
        x, y = (test["x"].astype(np.float32) - 83) * np.float32(0.5847029), test["y"]
    files = []
    for path, keras in ((source, None), (folder, "tf_keras")):
        loaded = rewriter.load_model(path, flavour=keras)
        assert rewriter.plan(loaded).count("fused") == 9
        qat = rewriter.rewrite(loaded, calibration_data=data)
        files.append(tmp_path / f"{len(files)}.tflite")
        rewriter.export_tflite(qat, files[-1])
    from rewriter.checking import interpreter

    accuracies = []
    for file in files:
        (scores,) = interpreter.run(file.read_bytes(), [x])
        accuracies.append(np.mean(scores.reshape(len(x), -1).argmax(-1) == y))
    assert accuracies[0] == accuracies[1] > 0.9


def test_the_commands(tmp_path, capsys):
    model = rewriter.load_model(demo.MODEL)
    folder = exported(model, tmp_path / "exported", "export")
    said = commands.output_of(capsys, "inspect", folder)
    assert "lifted from the signature 'serving_default'" in said and "DepthwiseConv2dNative" in said
    found = json.loads(commands.output_of(capsys, "inspect", folder, "--json"))
    assert found["keras"] == "keras" and found["lifted"]["kept"] == []
    for entry in ("serve", "serving_default"):
        options = ["--signature", entry, "--keras", "tf_keras", "--json"]
        found = json.loads(commands.output_of(capsys, "inspect", folder, *options))
        assert found["keras"] == "tf_keras" and found["lifted"]["signature"] == entry
    said = commands.output_of(capsys, "inspect", demo.MODEL)
    assert "lifted" not in said


def test_a_signature_that_is_not_there(tmp_path):
    model = builders.residual(builders.fresh(keras_of("keras")))
    folder = exported(model, tmp_path / "m", "export")
    with pytest.raises(LoadError, match=r"no signature 'predict'. It has: serve, serving_default"):
        rewriter.load_model(folder, signature="predict")
    model.save(tmp_path / "m.keras")
    with pytest.raises(LoadError, match="has no signatures"):
        rewriter.load_model(tmp_path / "m.keras", signature="serve")


class Writing(tf.Module):
    """A module whose function writes a file."""

    def __init__(self, path):
        super().__init__()
        self.path, self.scale = str(path), tf.Variable(2.0, name="scale")

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")])
    def serve(self, x):
        tf.io.write_file(self.path, "written")
        return self.scale * x


def test_an_operator_that_touches_files(tmp_path):
    marker = tmp_path / "marker"
    module = Writing(marker)
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    with pytest.raises(LoadError, match="the operator WriteFile"):
        rewriter.load_model(tmp_path / "m")
    assert not marker.exists()


def test_a_module_without_signatures(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "m"))
    with pytest.raises(LoadError, match="no signature"):
        rewriter.load_model(tmp_path / "m")


@pytest.mark.parametrize(
    "what",
    ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"],
)
@pytest.mark.parametrize("how", ["cut", "gone", "noise"])
def test_damage(what, how, tmp_path):
    model = builders.residual(builders.fresh(keras_of("keras")))
    folder = exported(model, tmp_path / "m", "export")
    path = folder / what
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 8])  # further on is what no one reads
    else:
        noise = np.random.default_rng(0).integers(256, size=len(content), dtype=np.uint8)
        path.write_bytes(noise.tobytes())
    with pytest.raises(LoadError) as caught:
        rewriter.load_model(folder)
    assert "m'" in str(caught.value)


def test_a_frozen_graph(tmp_path):
    from rewriter.keras_compat.private_tensorflow import with_constants

    keras = builders.fresh(keras_of("tf_keras"))
    model = builders.randomise_all(builders.residual(keras), 3)
    spec = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32, name="image")
    function = tf.function(lambda image: model(image, training=False)).get_concrete_function(spec)
    _, graph = with_constants(function)
    path = tmp_path / "frozen.pb"
    path.write_bytes(graph.SerializeToString())
    x = builders.residual_data()
    expected = model.predict(x, verbose=0)
    for options in ({}, {"inputs": ["image"], "outputs": [graph.node[-1].name]}):
        lifted = rewriter.load_model(path, **options)
        found = lifted.predict(x, verbose=0)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
        assert len(rewriter.plan(lifted).entries) == len(rewriter.plan(model).entries)
    with pytest.raises(LoadError, match="nowhere"):
        rewriter.load_model(path, outputs=["nowhere"])
    path.write_bytes(b"no graph at all")
    with pytest.raises(LoadError, match=r"frozen.pb"):
        rewriter.load_model(path)
    model.save(tmp_path / "m.keras")
    with pytest.raises(LoadError, match="of a frozen graph"):
        rewriter.load_model(tmp_path / "m.keras", outputs=["scores"])
