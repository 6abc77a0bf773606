"""Load trained models of either Keras from any of their formats."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from rewriter import flavours, stack
from rewriter.errors import LoadError
from rewriter.flavours import Flavour

_EXPECTED = "Expected a SavedModel folder with Keras metadata, a .keras file, or an .h5/.hdf5 file"


@dataclasses.dataclass(frozen=True)
class _Contents:
    """What a file says about itself.

    Attributes:
      kind: what it is, for messages.
      keras_version: the Keras that wrote it, such as ``"2.4.0"``; ``""`` where it does not say.
      config: its description of the architecture, as parsed JSON.
      suffixes: the suffixes by which Keras knows the format; empty where it asks for none.
      only: the one Keras that reads the format; None if both do.
    """

    kind: str
    keras_version: str
    config: Any
    suffixes: tuple[str, ...] = ()
    only: str | None = None

    @property
    def flavour_name(self) -> str:
        """Keras 3 writes its own version; everything older, or silent, is of tf_keras."""
        major = self.keras_version.split(".")[0]
        return "keras" if major.isdigit() and int(major) >= 3 else "tf_keras"


def load_model(
    path: str | os.PathLike[str],
    *,
    flavour: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    allow_lambda: bool = False,
) -> Any:
    """A trained model from a SavedModel folder, a ``.keras`` file or an ``.h5``/``.hdf5`` file.

    The file says which Keras wrote it, and that Keras loads it, whatever ``tf.keras`` is in this
    process. The model is not compiled.

    Args:
      path: the file or folder.
      flavour: ``"tf_keras"`` or ``"keras"`` (Keras 3) to choose one: Keras 3 can load many
        ``.h5`` files of Keras 2.
      custom_objects: classes and functions of yours that the file names, by name.
      allow_lambda: load ``Lambda`` layers, which hold Python code: loading and running it can do
        anything that you can, so allow it only for files whose source you trust.

    Returns:
      A tf_keras or a Keras 3 model.

    Raises:
      LoadError: if there is no such file, it is damaged, it holds no Keras model, or a layer's
        class is unknown.
      UnsupportedModelError: for a Keras 3 file while Keras 3 runs on another backend than
        TensorFlow.
      ValueError: for another ``flavour``.
    """
    path = Path(path)
    contents = _read(path)
    chosen = _choose(path, contents, flavour)
    if contents.suffixes and path.suffix not in contents.suffixes:
        raise LoadError(
            f"{str(path)!r} is {contents.kind}, but Keras knows it only by its name: "
            f"rename it to end in {contents.suffixes[0]!r}."
        )
    if not allow_lambda:
        _refuse_lambda(path, contents.config)
    try:
        with stack.room_for(sum(1 for _ in _objects(contents.config))):
            model = chosen.keras.models.load_model(
                str(path),
                custom_objects=dict(custom_objects or {}),
                compile=False,
                safe_mode=not allow_lambda,
            )
    except Exception as error:  # whatever the parts of Keras and of the user's classes raise
        raise LoadError(_explain(path, contents, chosen, custom_objects, error)) from error
    _refuse_revived(path, model, chosen)
    return model


def _read(path: Path) -> _Contents:
    if not path.exists():
        raise LoadError(f"There is no file or folder {str(path)!r}.")
    for fits, reader in _FORMATS:
        try:
            if fits(path):
                return reader(path)
        except (OSError, KeyError, ValueError, DecodeError, zipfile.BadZipFile) as error:
            if isinstance(error, LoadError):
                raise
            raise LoadError(
                f"{str(path)!r} cannot be read: it is damaged or incomplete ({_short(error)}). "
                "Save or copy it again."
            ) from error
    received = "a folder without saved_model.pb" if path.is_dir() else f"a file, {_glimpse(path)}"
    raise LoadError(f"{str(path)!r} is not a Keras model. {_EXPECTED}. Received: {received}.")


def _glimpse(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise LoadError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    if head[4:8] == b"TFL3":
        return "already a .tflite file: the model it was converted from is needed"
    return f"which begins with {head!r}" if head else "which is empty"


def _is_saved_model(path: Path) -> bool:
    return path.is_dir() and (path / "saved_model.pb").is_file()


def _read_saved_model(path: Path) -> _Contents:
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((path / "saved_model.pb").read_bytes())
    if not proto.meta_graphs:
        raise ValueError("saved_model.pb is empty")
    # Before TensorFlow 2.5 each node carries its metadata; since then they have their own file,
    # in which the messages are of the same form but for the field numbers.
    objects = proto.meta_graphs[0].object_graph_def.nodes
    texts = [
        node.user_object.metadata
        for node in objects
        if node.user_object.identifier.startswith("_tf_keras_")
    ]
    if (path / "keras_metadata.pb").is_file():
        texts = _keras_metadata(path / "keras_metadata.pb")
    nodes = [json.loads(text) for text in texts if text]
    if not nodes:
        raise LoadError(
            f"{str(path)!r} is a SavedModel without Keras metadata: it holds functions, as "
            "model.export and tf.saved_model.save write them, and no layers that could be "
            "rewritten. Save the model with model.save('model.keras') and load that."
        )
    versions = [node["keras_version"] for node in nodes if node.get("keras_version")]
    return _Contents("a SavedModel", versions[0] if versions else "", nodes, only="tf_keras")


def _keras_metadata(path: Path) -> list[str]:
    if flavours.TF_KERAS is None:
        return []  # the missing tf_keras is reported when it is chosen
    from tf_keras.protobuf import saved_metadata_pb2

    metadata = saved_metadata_pb2.SavedMetadata()
    metadata.ParseFromString(path.read_bytes())
    return [node.metadata for node in metadata.nodes]


def _is_hdf5(path: Path) -> bool:
    return path.is_file() and h5py.is_hdf5(path)


def _read_hdf5(path: Path) -> _Contents:
    with h5py.File(path, "r") as file:
        config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
    if config is None:
        raise LoadError(
            f"{str(path)!r} is an HDF5 file without a model's configuration: it holds weights "
            "only, or something else. Load the weights into the model that they belong to, and "
            "save that with model.save('model.keras')."
        )
    return _Contents("an HDF5 file", _text(version), json.loads(_text(config)), (".h5", ".hdf5"))


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _is_zip(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        # Not zipfile.is_zipfile: it looks at the end, which a truncated file has lost.
        return file.read(4) == b"PK\x03\x04"


def _read_zip(path: Path) -> _Contents:
    with zipfile.ZipFile(path) as file:
        if "config.json" not in file.namelist() or "metadata.json" not in file.namelist():
            raise LoadError(
                f"{str(path)!r} is a zip file, but not a .keras file. {_EXPECTED}. "
                f"Received: {file.namelist()[:5]}."
            )
        config = json.loads(file.read("config.json"))
        metadata = json.loads(file.read("metadata.json"))
        damaged = file.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged!r} in it is wrong")
    return _Contents("a .keras file", metadata["keras_version"], config, (".keras",))


_FORMATS: tuple[tuple[Callable[[Path], bool], Callable[[Path], _Contents]], ...] = (
    (_is_saved_model, _read_saved_model),
    (_is_hdf5, _read_hdf5),
    (_is_zip, _read_zip),
)


def _choose(path: Path, contents: _Contents, name: str | None) -> Flavour:
    known = {"tf_keras": flavours.TF_KERAS, "keras": flavours.KERAS3}
    if name is not None and name not in known:
        raise ValueError(f"flavour must be one of {sorted(known)} or None. Received: {name!r}.")
    name = name or contents.only or contents.flavour_name
    if contents.only not in (None, name):
        raise LoadError(
            f"{str(path)!r} is {contents.kind}, which {name} does not load. Leave the flavour to "
            f"the file ({contents.only}), or save the model as .h5 and load that in {name}."
        )
    chosen = known[name]
    if chosen is None:
        raise LoadError(_cannot_import(path, name))
    if name == "keras":
        flavours.require_tensorflow_backend()
    return chosen


def _cannot_import(path: Path, name: str) -> str:
    try:
        importlib.import_module(name)
        reason = "it is not the version that this package knows"
    except ImportError as error:
        reason = _short(error)
    message = f"{str(path)!r} needs {name}, which cannot be imported here ({reason}). "
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if name == "keras" and backend != "tensorflow":
        return message + f"Set KERAS_BACKEND=tensorflow. Received: KERAS_BACKEND={backend}."
    return message + f"Install it: pip install {name.replace('_', '-')}."


def _objects(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every ``{"class_name": ..., "config": {...}}`` in a parsed configuration of a model."""
    if isinstance(config, Mapping):
        if isinstance(config.get("class_name"), str) and isinstance(config.get("config"), Mapping):
            yield config
        for key, value in config.items():
            if key not in ("training_config", "compile_config"):  # losses and metrics: not loaded
                yield from _objects(value)
    elif isinstance(config, list):
        for value in config:
            yield from _objects(value)


def _name(entry: Mapping[str, Any]) -> str:
    return entry["config"].get("name", entry.get("name", "?"))


def _refuse_lambda(path: Path, config: Any) -> None:
    # Keras itself runs the code in .h5 files and SavedModels without asking.
    for entry in _objects(config):
        function = entry["config"].get("function")
        named = isinstance(function, str) or (
            isinstance(function, Mapping) and function.get("class_name") == "function"
        )
        if entry["class_name"] == "Lambda" and not named:
            raise LoadError(
                f"The layer {_name(entry)!r} of {str(path)!r} is a Lambda: it holds Python code, "
                "which could do anything when the model is loaded. If you trust the source of "
                "the file, allow it: load_model(path, allow_lambda=True), or --allow-lambda on "
                "the command line."
            )


def _refuse_revived(path: Path, model: Any, flavour: Flavour) -> None:
    """A SavedModel's layers of unknown classes come back as functions that cannot be rewritten."""
    for layer in model._flatten_layers():
        if type(layer).__module__.endswith("saving.legacy.saved_model.load"):
            raise LoadError(_unknown(path, layer.name, type(layer).__name__, flavour))


def _explain(
    path: Path,
    contents: _Contents,
    flavour: Flavour,
    custom_objects: Mapping[str, Any] | None,
    error: Exception,
) -> str:
    for entry in _objects(contents.config):
        if "name" in entry["config"] and not _is_known(entry, flavour, custom_objects):
            return _unknown(path, _name(entry), entry["class_name"], flavour)
    message = f"{str(path)!r} is {contents.kind}, but {flavour.name} cannot load it"
    if contents.flavour_name != flavour.name:
        message += f" (it was written by Keras {contents.keras_version or '2'})"
    return f"{message}: {_short(error)}"


def _is_known(
    entry: Mapping[str, Any], flavour: Flavour, custom_objects: Mapping[str, Any] | None
) -> bool:
    """Whether this Keras, or the user, has the class of a layer."""
    name, module = entry["class_name"], entry.get("module")
    if module is not None and not entry.get("registered_name"):
        # Stock classes, which are written with their module and without a registered name.
        return module.split(".")[0] in ("keras", "tf_keras")
    keras = flavour.keras
    names = {name, entry.get("registered_name") or name}
    return (
        name in ("Functional", "TFOpLambda", "SlicingOpLambda")
        or hasattr(keras.layers, name)
        or hasattr(keras, name)
        or any(keras.saving.get_registered_object(n, dict(custom_objects or {})) for n in names)
    )


def _unknown(path: Path, layer: str, class_name: str, flavour: Flavour) -> str:
    return (
        f"The layer {layer!r} of {str(path)!r} is of the unknown class {class_name!r}. Before "
        f"loading, decorate the class with @{flavour.name}.saving.register_keras_serializable() "
        f"and import it (on the command line: --import MODULE), or pass custom_objects="
        f"{{{class_name!r}: {class_name}}}."
    )


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
