"""Files that run code, or write a file, when a Keras loads them without asking.

Each sample is made by a function of a folder and a marker: a path that exists once the code ran.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from edited_files import (
    ANYTHING,
    MODULE,
    Entry,
    argument,
    code,
    constants,
    edited,
    function,
    layer,
    module,
    plain,
    victim,
)
from saved_models import KERASES

# What tf_keras runs: in .keras and in .h5


def _os_system(marker: Path) -> Any:
    inbound = [constants(f"touch '{marker}'")]
    named = {"function": function("os", "system"), "function_type": "function"}
    return layer("Lambda", {**named, "output_shape": None, "output_shape_type": "raw"}, inbound)


def _nested(marker: Path) -> Any:
    def change(model: Entry) -> None:
        inner = json.loads(json.dumps(model))
        _os_system(marker)(inner)
        inner["config"]["name"] = "victim"
        for key in ("build_config", "compile_config"):
            inner.pop(key, None)
        victim(model).update(class_name="Functional", config=inner["config"])
        victim(model).pop("build_config", None)

    return change


def _byte_code(marker: Path) -> Any:
    return layer("Lambda", {"function": code(marker), "function_type": "lambda",
                            "output_shape": None, "output_shape_type": "raw"})  # fmt: skip


def _byte_code_as_text(marker: Path) -> Any:
    return layer("Lambda", {"function": code(marker)[0], "function_type": "lambda",
                            "output_shape": None, "output_shape_type": "raw"})  # fmt: skip


def _mask(marker: Path) -> Any:
    stock = {"function": function("keras.activations", "relu"), "function_type": "function"}
    mask = {"mask": code(marker), "mask_type": "lambda"}
    return layer("Lambda", {**stock, **mask, "output_shape": None, "output_shape_type": "raw"})


def _write_file(marker: Path) -> Any:
    inbound = constants(str(marker), contents="x")
    return layer("TFOpLambda", {"function": "io.write_file"}, inbound)


def _make_folder(marker: Path) -> Any:
    return layer("TFOpLambda", {"function": "compat.v1.gfile.MakeDirs"}, constants(str(marker)))


def _slicing(marker: Path) -> Any:
    inbound = constants(str(marker), contents="x")
    return layer("SlicingOpLambda", {"function": "io.write_file"}, inbound)


def _method(marker: Path) -> Any:
    config = {"cls_symbol": "io.write_file", "method_name": "__call__"}
    return layer("ClassMethod", config, constants([str(marker)], kwargs={"contents": "x"}))


def _imported_function(marker: Path) -> Any:
    return layer("Lambda", {"function": function(MODULE, "Anything"), "function_type": "function",
                            "output_shape": None, "output_shape_type": "raw"})  # fmt: skip


def _deserialized(name: str) -> Callable[[Path], Any]:
    called = {"class_name": "deserialize_keras_object", "config": {"config": ANYTHING}}
    return lambda marker: argument(**{name: called})


def _wrapped(marker: Path) -> Any:
    inner: Entry = {"class_name": "Dense", "config": {"name": "inner", "units": 3}}
    called = {"class_name": "deserialize_keras_object", "config": {"config": ANYTHING}}
    inner["config"]["kernel_regularizer"] = called
    return layer("TimeDistributed", {"layer": inner})


TF_KERAS: dict[str, Callable[[Path], Any]] = {
    "os.system": _os_system,
    "os.system in a nested model": _nested,
    "byte code as a mask": _mask,
    "io.write_file": _write_file,
    "gfile.MakeDirs": _make_folder,
    "io.write_file as a slice": _slicing,
    "io.write_file as a method": _method,
    "a module is imported": _imported_function,
    "a regularizer that deserializes": _deserialized("kernel_regularizer"),
    "a constraint that deserializes": _deserialized("bias_constraint"),
    "a wrapped layer's regularizer": _wrapped,
    "byte code": _byte_code,
    "byte code as text": _byte_code_as_text,
}
# In .h5 it looks up registered names only, and functions of TensorFlow.
IN_H5 = ("io.write_file", "gfile.MakeDirs", "io.write_file as a slice",
         "io.write_file as a method", "byte code", "byte code as text")  # fmt: skip


def of_tf_keras(kind: str, suffix: str) -> Callable[[Path, Path], Path]:
    def make(folder: Path, marker: Path) -> Path:
        module(folder, marker)
        return edited(plain(tf_keras, folder / f"m{suffix}"), TF_KERAS[kind](marker))

    return make


def root_class(folder: Path, marker: Path) -> Path:
    """The model itself is of a class in a module that is imported for it."""
    module(folder, marker)
    return edited(plain(tf_keras, folder / "m.keras"), lambda model: ANYTHING)


# SavedModels


def saved_lambda(folder: Path, marker: Path) -> Path:
    image = tf_keras.layers.Input((3,))
    x = tf_keras.layers.Lambda(lambda x: x, name="victim")(image)
    tf_keras.Model(image, x).save(folder / "m")

    def change(node: Entry) -> None:
        for entry in [node, *node["config"].get("layers", [])]:
            if entry["class_name"] == "Lambda":
                entry["config"]["function"] = code(marker)

    return edited(folder / "m", change)


def saved_symbol(folder: Path, marker: Path) -> Path:
    image = tf_keras.layers.Input((3,))
    tf_keras.Model(image, tf.math.abs(image)).save(folder / "m")

    def change(node: Entry) -> None:
        for entry in [node, *node["config"].get("layers", [])]:
            if entry["class_name"] == "TFOpLambda":
                entry["config"]["function"] = "io.write_file"
                entry["inbound_nodes"] = constants(str(marker), contents="x")

    return edited(folder / "m", change)


def saved_resource(folder: Path, marker: Path) -> Path:
    """A graph in the file that is run to set up a resource."""

    class Resource(tf.saved_model.experimental.TrackableResource):  # type: ignore[misc]
        def _create_resource(self) -> Any:
            return tf.raw_ops.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64)

        def _initialize(self) -> Any:
            tf.io.write_file(str(marker), "x")

    image = tf_keras.layers.Input((3,))
    model = tf_keras.Model(image, tf_keras.layers.Dense(3)(image))
    resource = model.resource = Resource()
    model.resource_handle = resource.resource_handle
    model.save(folder / "m")
    marker.unlink(missing_ok=True)  # making the resource has left it too
    return folder / "m"


# Keras 3


def keras_lambda(suffix: str) -> Callable[[Path, Path], Path]:
    def make(folder: Path, marker: Path) -> Path:
        image = keras.layers.Input((3,))
        x = keras.layers.Lambda(lambda x: x, name="victim")(image)
        keras.Model(image, x).save(folder / f"m{suffix}")
        return edited(folder / f"m{suffix}", argument(function=code(marker, keras_3=True)))

    return make


def keras_function(suffix: str) -> Callable[[Path, Path], Path]:
    """Keras 3's safe mode lets a file call most of its public functions, such as this one."""

    def make(folder: Path, marker: Path) -> Path:
        image = keras.layers.Input((3,))
        x = keras.layers.Lambda(lambda x: x, name="victim")(image)
        keras.Model(image, x).save(folder / f"m{suffix}")

        return edited(
            folder / f"m{suffix}", argument(function=function("keras.config", "set_epsilon"))
        )

    return make


def ran(marker: Path) -> bool:
    """Whether a sample has done what it does."""
    return marker.exists() or not isinstance(keras.config.epsilon(), float)


# Rewritten models, whose layers make quantizers and layers themselves


def rewritten(k: str, suffix: str) -> Callable[[Path, Path], Path]:
    """A quantizer that is none: it loads another file, and trusts that."""

    def make(folder: Path, marker: Path) -> Path:
        import rewriter

        other = of_tf_keras("io.write_file", ".h5")(folder, marker).rename(folder / "other.h5")
        image = KERASES[k].layers.Input((3,))
        model = KERASES[k].Model(image, KERASES[k].layers.Dense(3, name="victim")(image))
        rewriter.rewrite(model).save(folder / f"m{suffix}")
        return edited(folder / f"m{suffix}", argument(kernel_quantizers=[loading(other)]))

    return make


def loading(path: Path) -> Entry:
    arguments = {"path": str(path), "allow_lambda": True}
    return {"class": "rewriter.load_model", "config": arguments}


SAMPLES: dict[str, Callable[[Path, Path], Path]] = {
    **{f"tf_keras .keras, {kind}": of_tf_keras(kind, ".keras") for kind in TF_KERAS},
    **{f"tf_keras .h5, {kind}": of_tf_keras(kind, ".h5") for kind in IN_H5},
    "tf_keras .keras, a class of the model": root_class,
    "tf_keras SavedModel, byte code": saved_lambda,
    "tf_keras SavedModel, io.write_file": saved_symbol,
    "tf_keras SavedModel, a resource": saved_resource,
    "keras .keras, byte code": keras_lambda(".keras"),
    "keras .h5, byte code": keras_lambda(".h5"),
    "keras .keras, set_epsilon": keras_function(".keras"),
    "tf_keras .keras, rewritten": rewritten("tf_keras", ".keras"),
    "tf_keras .h5, rewritten": rewritten("tf_keras", ".h5"),
    "keras .keras, rewritten": rewritten("keras", ".keras"),
    "keras .h5, rewritten": rewritten("keras", ".h5"),
}
