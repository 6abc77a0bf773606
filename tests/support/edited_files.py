"""Files of models, and changes to the configurations in them."""

from __future__ import annotations

import base64
import json
import marshal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
from tf_keras.protobuf import saved_metadata_pb2

Entry = dict[str, Any]
MODULE = "hostile_module_of_a_file"  # made by `module`, and imported by nobody but an attack


def plain(k: Any, path: Path) -> Path:
    """Input, Dense called ``victim``."""
    image = k.layers.Input((3,), name="image")
    k.Model(image, k.layers.Dense(3, name="victim")(image)).save(path)
    return path


def edited(path: Path, change: Callable[[Any], Any]) -> Path:
    """The file with ``change`` made to its configuration."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as file:
            parts = {name: file.read(name) for name in file.namelist()}
        config = json.loads(parts["config.json"])
        parts["config.json"] = json.dumps(change(config) or config).encode()
        with zipfile.ZipFile(path, "w") as file:
            for name, content in parts.items():
                file.writestr(name, content)
    elif path.is_dir():
        nodes = saved_metadata_pb2.SavedMetadata()
        nodes.ParseFromString((path / "keras_metadata.pb").read_bytes())
        for node in nodes.nodes:
            config = json.loads(node.metadata)
            node.metadata = json.dumps(change(config) or config)
        (path / "keras_metadata.pb").write_bytes(nodes.SerializeToString())
    else:
        with h5py.File(path, "a") as file:
            config = json.loads(file.attrs["model_config"])
            file.attrs["model_config"] = json.dumps(change(config) or config)
    return path


def victim(config: Entry) -> Entry:
    return next(e for e in config["config"]["layers"] if e["config"]["name"] == "victim")


def code(marker: Path, keras_3: bool = False) -> Any:
    """Byte code of a function that leaves the marker, as each Keras writes it."""
    body = f"lambda x, *more, **others: (open({str(marker)!r}, 'w').close(), x)[1]"
    raw = base64.b64encode(marshal.dumps(eval(body).__code__)).decode()
    if keras_3:
        inner = {"code": raw, "defaults": None, "closure": None}
        return {"class_name": "__lambda__", "config": inner}
    return [raw, None, None]


def function(module: str | None, name: str) -> Entry:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def constants(value: Any, **more: Any) -> list:
    return [["_CONSTANT_VALUE", -1, value, more]]


def layer(class_name: str, config: Entry, inbound: Any = None) -> Callable[[Entry], None]:
    """A change: the victim becomes another layer."""

    def change(model: Entry) -> None:
        entry = victim(model)
        entry.update(class_name=class_name, config={"name": "victim", **config})
        entry.pop("build_config", None)
        if inbound is not None:
            entry["inbound_nodes"] = inbound

    return change


def argument(**values: Any) -> Callable[[Entry], None]:
    """A change: the victim has other arguments."""
    return lambda model: victim(model)["config"].update(values)


def module(folder: Path, marker: Path) -> None:
    """Puts a module where Python looks for them, which leaves the marker when imported."""
    text = f"open({str(marker)!r}, 'w').close()\nclass Anything: pass\n"
    (folder / f"{MODULE}.py").write_text(text)


ANYTHING = {"module": MODULE, "class_name": "Anything", "config": {}, "registered_name": None}
