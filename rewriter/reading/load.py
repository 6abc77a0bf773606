"""Load trained models of either Keras from any of their formats."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewriter import keras_compat
from rewriter.errors import LoadError, RewriterWarning, short
from rewriter.files import boundaries
from rewriter.keras_compat import Flavour, flat_layers, stack, trust
from rewriter.lifting import lift
from rewriter.reading import model_formats, wiring
from rewriter.reading.model_formats import Contents


def load_model(
    path: str | os.PathLike[str],
    *,
    flavour: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    allow_lambda: bool = False,
    signature: str | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Any:
    """A trained model from a SavedModel folder, a ``.keras``, ``.h5``/``.hdf5`` or ``.pb`` file.

    The file says which Keras wrote it, and that Keras loads it, whatever ``tf.keras`` is in this
    process. The model is not compiled.

    A SavedModel without layers, as ``model.export`` and ``tf.saved_model.save`` write it, is
    *lifted*: a functional model is made of its signature's graph, with the variables as trainable
    weights. So is one whose layers cannot be loaded, because their classes are missing or hold
    Python code; a warning says why. So is a frozen graph, a ``.pb`` file. Nothing of the file is
    run.

    Args:
      path: the file or folder.
      flavour: ``"tf_keras"`` or ``"keras"`` (Keras 3) to choose one: Keras 3 can load many
        ``.h5`` files of Keras 2. What is lifted becomes a model of Keras 3 by default.
      custom_objects: classes and functions of yours that the file names, by name.
      allow_lambda: trust the file entirely. It may then hold Python code, as ``Lambda`` layers
        do, and name any function of any module: loading and running it can do anything that you
        can. Without it, a file may name stock classes, stock functions that only compute, and
        what is registered with Keras or in ``custom_objects``.
      signature: lift this signature of a SavedModel, whether it has layers or not.
      inputs, outputs: names of tensors of a frozen graph; None: its placeholders, and what nothing
        reads.

    Returns:
      A tf_keras or a Keras 3 model.

    Raises:
      LoadError: if there is no such file, it is damaged, it holds no model, a layer's class is
        unknown, it names what a file may not have called, or its graph cannot be lifted.
      UnsupportedModelError: for a Keras 3 file while Keras 3 runs on another backend than
        TensorFlow.
      ValueError: for another ``flavour``.
    """
    path = Path(path)
    contents = model_formats.read(path)
    if contents.frozen:
        chosen = _choose(path, contents, flavour or _for_lifting())
        with boundaries.model(path):
            return lift.lift_frozen(path, chosen, inputs, outputs)
    if inputs is not None or outputs is not None:
        raise LoadError(
            f"{str(path)!r} is {contents.kind}: inputs and outputs are chosen of a frozen graph "
            "(.pb) only. Leave them out; of a SavedModel, choose a signature."
        )
    if contents.functions_only or signature is not None:
        return _lifted(path, contents, flavour, signature, allow_lambda)
    try:
        return _with_layers(path, contents, flavour, custom_objects, allow_lambda)
    except LoadError as error:
        if not contents.revived or contents.runs is not None:
            raise
        try:
            model = _lifted(path, contents, flavour, None, allow_lambda)
        except LoadError as second:
            raise LoadError(f"{error} Nor can its graph be lifted: {second}") from error
        warnings.warn(
            f"The model is lifted from the graph of its signature, not loaded: {error}",
            RewriterWarning,
            stacklevel=2,
        )
        return model


def _lifted(
    path: Path, contents: Contents, name: str | None, signature: str | None, trusted: bool
) -> Any:
    if not path.is_dir():
        raise LoadError(
            f"{str(path)!r} is {contents.kind}, which has no signatures. Leave signature out."
        )
    if contents.runs is not None and not trusted:
        raise _runs(path, contents)
    anyone = dataclasses.replace(contents, only=None)
    chosen = _choose(path, anyone, name or _for_lifting())
    with boundaries.model(path):
        return lift.lift(path, chosen, signature)


def _for_lifting() -> str:
    """The Keras of lifted models where none is asked for."""
    return "tf_keras" if keras_compat.KERAS3 is None else "keras"


def _with_layers(
    path: Path,
    contents: Contents,
    flavour: str | None,
    custom_objects: Mapping[str, Any] | None,
    allow_lambda: bool,
) -> Any:
    chosen = _choose(path, contents, flavour)
    if contents.suffixes and path.suffix not in contents.suffixes:
        raise LoadError(
            f"{str(path)!r} is {contents.kind}, but Keras knows it only by its name: "
            f"rename it to end in {contents.suffixes[0]!r}."
        )
    if not contents.revived:
        with boundaries.model(path):
            wiring.check(contents.config)
    if not allow_lambda:
        with boundaries.model(path):
            _check(path, contents, chosen, custom_objects)
    allowing = trust.everything() if allow_lambda else contextlib.nullcontext()
    try:
        with allowing, stack.room_for(trust.count(contents.config)):
            model = chosen.keras.models.load_model(
                str(path),
                custom_objects=dict(custom_objects or {}),
                compile=False,
                safe_mode=not allow_lambda,
            )
    except Exception as error:  # whatever the parts of Keras and of the user's classes raise
        raise LoadError(_explain(path, contents, chosen, error)) from error
    if not chosen.is_model(model):
        raise LoadError(
            f"{str(path)!r} is {contents.kind}, but what it holds is no model. Received: an object "
            f"of type {type(model).__qualname__}. Wrap a layer: Model(inputs, layer(inputs))."
        )
    _refuse_revived(path, model, chosen, contents)
    if chosen.is_functional(model):
        for layer in model.layers:
            chosen.may_be_saved(layer)
    return model


_QUOTES = "Exception encountered:"  # before another error's message, in one of Keras


def _choose(path: Path, contents: Contents, name: str | None) -> Flavour:
    known = {"tf_keras": keras_compat.TF_KERAS, "keras": keras_compat.KERAS3}
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
        keras_compat.require_tensorflow_backend()
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


def _check(
    path: Path, contents: Contents, flavour: Flavour, custom_objects: Mapping[str, Any] | None
) -> None:
    """Raise LoadError if loading would run what the file says, rather than make stock objects."""
    if contents.runs is not None:
        raise _runs(path, contents)
    try:
        trust.check(
            contents.config, flavour, repr(str(path)), custom_objects, revived=contents.revived
        )
    except LoadError as error:
        if contents.flavour_name == flavour.name:
            raise
        raise LoadError(_explain(path, contents, flavour, error)) from error
    except RecursionError as error:
        raise LoadError(f"The configuration in {str(path)!r} is nested too deeply.") from error


def _runs(path: Path, contents: Contents) -> LoadError:
    return LoadError(
        f"{str(path)!r} is {contents.kind} that would run the operation {contents.runs!r} "
        "while it is loaded, which no model needs. If you trust its source, allow it: "
        "load_model(path, allow_lambda=True), or --allow-lambda on the command line."
    )


def _refuse_revived(path: Path, model: Any, flavour: Flavour, contents: Contents) -> None:
    """A SavedModel's layers of unknown classes come back as functions that cannot be rewritten.

    Those of known classes too, where they cannot be made of their configuration.
    """
    for layer in flat_layers(model):
        if type(layer).__module__.endswith("saving.legacy.saved_model.load"):
            if flavour.layer_class(type(layer).__name__) is not None:
                found = (layer.name, type(layer).__name__)
                raise LoadError(_other_version(path, *found, flavour, contents))
            cls = flavour.registered.get(type(layer).__name__)
            nodes = [node for node in contents.config if node.get("name") == layer.name]
            try:
                if cls is not None and nodes:
                    cls.from_config(dict(nodes[0]["config"]))  # type: ignore[attr-defined]
            except Exception as error:  # whatever its parts raise: the reason
                raise LoadError(_explain(path, contents, flavour, error)) from error
            raise LoadError(_unknown(path, layer.name, type(layer).__name__, flavour))


def _other_version(
    path: Path, layer: str, class_name: str, flavour: Flavour, contents: Contents
) -> str:
    """A stock layer with a configuration that this version of Keras does not know."""
    return (
        f"The layer {layer!r} of {str(path)!r} has a configuration of {class_name} that "
        f"{flavour.name} {flavour.keras.__version__} does not know: the file was written by "
        f"version {contents.keras_version or 'unknown'}. Load it with that version or a newer one, "
        "or write it there with model.export."
    )


def _explain(path: Path, contents: Contents, flavour: Flavour, error: Exception) -> str:
    revived = r"Cannot call custom layer (\S+) of type <class '\S+\.(\w+)'>"
    uncallable = re.search(revived, str(error))
    if uncallable and flavour.layer_class(uncallable[2]) is not None:
        return _other_version(path, uncallable[1], uncallable[2], flavour, contents)
    message = f"{str(path)!r} is {contents.kind}, but {flavour.name} cannot load it"
    if contents.flavour_name != flavour.name:
        message += f" (it was written by Keras {contents.keras_version or '2'})"
    return f"{message}: {short(_innermost(error))}"


def _innermost(error: BaseException) -> BaseException:
    """The error of which all others around it only say that it happened.

    Keras puts one around it for every layer that the failing one stands in, with its whole
    configuration in the message.
    """
    while _QUOTES in str(error) and error.__context__ is not None:
        error = error.__context__
    return error


def _unknown(path: Path, layer: str, class_name: str, flavour: Flavour) -> str:
    return (
        f"The layer {layer!r} of {str(path)!r} is of the unknown class {class_name!r}. Before "
        f"loading, decorate the class with @{flavour.name}.saving.register_keras_serializable() "
        f"and import it (on the command line: --import MODULE), or pass custom_objects="
        f"{{{class_name!r}: {class_name}}}."
    )
