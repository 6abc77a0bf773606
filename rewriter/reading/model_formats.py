"""The formats of saved models, and what a file of each says about itself."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

from rewriter import keras_compat
from rewriter.errors import LoadError
from rewriter.files import boundaries
from rewriter.keras_compat import private_tensorflow
from rewriter.reading import containers

_EXPECTED = "Expected a SavedModel folder, a .keras, .h5/.hdf5 or .pb file"


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file says about itself.

    Attributes:
      kind: what it is, for messages.
      keras_version: the Keras that wrote it, such as ``"2.4.0"``; ``""`` where it does not say.
      config: its description of the architecture, as parsed JSON.
      suffixes: the suffixes by which Keras knows the format; empty where it asks for none.
      only: the one Keras that reads the format; None if both do.
      revived: whether ``config`` lists the objects of a SavedModel, which can be made without
        their classes.
      runs: an operation that loading would run, and that no model needs; None if there is none.
      functions_only: whether it has no layers that could be loaded, only functions.
      frozen: whether it is a frozen graph.
    """

    kind: str
    keras_version: str
    config: Any
    suffixes: tuple[str, ...] = ()
    only: str | None = None
    revived: bool = False
    runs: str | None = None
    functions_only: bool = False
    frozen: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.keras_version, str):
            raise ValueError(f"the version of Keras in it is no text, but {self.keras_version!r}")

    @property
    def flavour_name(self) -> str:
        """Keras 3 writes its own version; everything older, or silent, is of tf_keras."""
        major = self.keras_version.split(".")[0]
        return "keras" if major.isdigit() and int(major) >= 3 else "tf_keras"


def read(path: Path) -> Contents:
    """What the model in a file or folder says about itself.

    Raises:
      LoadError: if there is none, or it is damaged.
    """
    if not path.exists():
        raise LoadError(f"There is no file or folder {str(path)!r}.")
    for fits, reader in _FORMATS:
        with boundaries.model(path):
            if fits(path):
                return reader(path)
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


def _read_saved_model(path: Path) -> Contents:
    proto = private_tensorflow.SavedModel()
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
    runs = containers.run_on_loading(proto.meta_graphs[0])
    if not nodes:  # as model.export and tf.saved_model.save write it
        return Contents("a SavedModel without layers", "", [], runs=runs, functions_only=True)
    versions = [node["keras_version"] for node in nodes if node.get("keras_version")]
    return Contents(
        "a SavedModel",
        versions[0] if versions else "",
        nodes,
        only="tf_keras",
        revived=True,
        runs=runs,
    )


def _keras_metadata(path: Path) -> list[str]:
    if keras_compat.TF_KERAS is None:
        return []  # the missing tf_keras is reported when it is chosen
    from tf_keras.protobuf import saved_metadata_pb2

    metadata = saved_metadata_pb2.SavedMetadata()
    metadata.ParseFromString(path.read_bytes())
    return [node.metadata for node in metadata.nodes]


def _is_hdf5(path: Path) -> bool:
    return path.is_file() and h5py.is_hdf5(path)


def _read_hdf5(path: Path) -> Contents:
    with h5py.File(path, "r") as file:
        containers.check_hdf5(file, path.stat().st_size)
        config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
    if config is None:
        raise LoadError(
            f"{str(path)!r} is an HDF5 file without a model's configuration: it holds weights "
            "only, or something else. Load the weights into the model that they belong to, and "
            "save that with model.save('model.keras')."
        )
    return Contents("an HDF5 file", _text(version), json.loads(_text(config)), (".h5", ".hdf5"))


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _is_zip(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        # Not zipfile.is_zipfile: it looks at the end, which a truncated file has lost.
        return file.read(4) == b"PK\x03\x04"


def _read_zip(path: Path) -> Contents:
    with zipfile.ZipFile(path) as file:
        if "config.json" not in file.namelist() or "metadata.json" not in file.namelist():
            raise LoadError(
                f"{str(path)!r} is a zip file, but not a .keras file. {_EXPECTED}. "
                f"Received: {file.namelist()[:5]}."
            )
        containers.check_zip(file, path.stat().st_size)
        config = json.loads(file.read("config.json"))
        metadata = json.loads(file.read("metadata.json"))
        damaged = file.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged!r} in it is wrong")
    return Contents("a .keras file", metadata["keras_version"], config, (".keras",))


def _is_frozen(path: Path) -> bool:
    return path.is_file() and path.suffix == ".pb"


def _read_frozen(path: Path) -> Contents:
    return Contents("a frozen graph", "", [], frozen=True)


_FORMATS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Contents]], ...] = (
    (_is_saved_model, _read_saved_model),
    (_is_hdf5, _read_hdf5),
    (_is_zip, _read_zip),
    (_is_frozen, _read_frozen),
)
