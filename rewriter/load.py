"""Load trained models of either Keras from any of their formats."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rewriter import flavours, model_formats, stack
from rewriter.errors import LoadError, short
from rewriter.flavours import Flavour
from rewriter.model_formats import Contents


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
    contents = model_formats.read(path)
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


def _choose(path: Path, contents: Contents, name: str | None) -> Flavour:
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
        reason = short(error)
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
    contents: Contents,
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
    return f"{message}: {short(error)}"


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
