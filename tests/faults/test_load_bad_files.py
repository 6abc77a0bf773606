"""Files that are no models, or damaged ones: each is one clear error."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import pytest
import tf_keras

import rewriter
from rewriter.errors import LoadError
from rewriter.reading.load import load_model
from saved_models import build, save


def _missing(folder: Path) -> Path:
    return folder / "nothing.keras"


def _empty(folder: Path) -> Path:
    (folder / "m.h5").write_bytes(b"")
    return folder / "m.h5"


def _text(folder: Path) -> Path:
    (folder / "m.keras").write_text("not a model")
    return folder / "m.keras"


def _empty_folder(folder: Path) -> Path:
    (folder / "m").mkdir()
    return folder / "m"


def _cut(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def _cut_keras(folder: Path) -> Path:
    return _cut(save(build(keras), folder / "m.keras"))


def _cut_h5(folder: Path) -> Path:
    return _cut(save(build(tf_keras), folder / "m.h5"))


def _cut_saved_model(folder: Path) -> Path:
    _cut(save(build(tf_keras), folder / "m") / "saved_model.pb")
    return folder / "m"


def _cut_variables(folder: Path) -> Path:
    path = save(build(tf_keras), folder / "m")
    data = path / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:8])  # what is whole further on, lifting can read
    return path


def _flipped_weights(folder: Path) -> Path:
    path = save(build(keras), folder / "m.keras")
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("model.weights.h5")
    content = bytearray(path.read_bytes())
    content[info.header_offset + info.compress_size // 2] ^= 0xFF
    path.write_bytes(content)
    return path


def _other_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "m.keras", "w") as file:
        file.writestr("readme.txt", "nothing")
    return folder / "m.keras"


def _bad_config(folder: Path) -> Path:
    path = save(build(tf_keras), folder / "m.h5")
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = "{"
    return path


def _weights(folder: Path) -> Path:
    build(keras).save_weights(folder / "m.weights.h5")
    return folder / "m.weights.h5"


def _tflite(folder: Path) -> Path:
    (folder / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    return folder / "m.tflite"


def _renamed(folder: Path) -> Path:
    return save(build(keras), folder / "m.keras").rename(folder / "m.model")


BAD_FILES = {
    _missing: "no file or folder",
    _empty: "which is empty",
    _text: "begins with b'not a mo'",
    _empty_folder: "a folder without saved_model.pb",
    _cut_keras: "damaged or incomplete",
    _cut_h5: "damaged or incomplete|cannot load it",
    _cut_saved_model: "damaged or incomplete",
    _cut_variables: "cannot load it",
    _flipped_weights: "damaged or incomplete",
    _other_zip: "a zip file, but not a .keras file",
    _bad_config: "damaged or incomplete",
    _weights: "weights only",
    _tflite: "already a .tflite file",
    _renamed: "rename it to end in '.keras'",
}


@pytest.mark.parametrize("make", BAD_FILES, ids=lambda f: f.__name__.strip("_"))
def test_bad_files(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(LoadError, match=BAD_FILES[make]) as caught:
        load_model(path)
    assert path.name in str(caught.value)


def test_operations_of_keras_3_in_hdf5(tmp_path: Path) -> None:
    """Keras writes them into ``.h5``, and does not load them again: no class of the user's."""
    image = keras.Input((6, 4))
    model = keras.Model(image, keras.layers.Dense(2)(image[:, 3] + 1.0))
    for each, name in ((model, "m"), (rewriter.rewrite(model), "q")):
        each.save(tmp_path / f"{name}.h5")
        with pytest.raises(LoadError, match="is the operation 'GetItem'.*save .* as .keras"):
            load_model(tmp_path / f"{name}.h5")
        each.save(tmp_path / f"{name}.keras")
        assert load_model(tmp_path / f"{name}.keras").output_shape == (None, 2)


def test_a_stock_layer_of_another_version(tmp_path):
    """What a newer Keras writes of a layer of its own is not said to be an unknown class."""
    inputs = tf_keras.Input((4,))
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="of_tomorrow")(inputs))
    model.save(tmp_path / "m", save_traces=False)  # else its graph is lifted
    metadata = tmp_path / "m" / "keras_metadata.pb"
    kept = metadata.read_bytes()
    changed = kept.replace(b'"use_bias": true', b'"use_idea": true')
    assert changed != kept
    metadata.write_bytes(changed)
    with pytest.raises(LoadError, match="'of_tomorrow'.*Dense that tf_keras .* does not know"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("name", ["tf_keras", "keras"])
def test_a_class_of_a_package_that_is_not_imported(name, tmp_path):
    """The file says where the class stood, so that the remedy can, too."""
    k = {"tf_keras": tf_keras, "keras": keras}[name]
    of = {"__module__": "shop.inner.layers", "call": lambda self, inputs: inputs}
    Shelf = k.saving.register_keras_serializable("shop")(type("Shelf", (k.layers.Layer,), of))
    inputs = k.Input((4,))
    k.Model(inputs, Shelf(name="shelf")(inputs)).save(tmp_path / "m.keras")
    k.saving.get_custom_objects().pop("shop>Shelf")
    with pytest.raises(LoadError, match="'shelf'.*unknown class 'Shelf'.*--import shop"):
        load_model(tmp_path / "m.keras")
