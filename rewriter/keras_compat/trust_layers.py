"""Stock layers whose configuration itself names what is called, or read."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from rewriter.keras_compat import pure_functions, symbols

_Known = Callable[[Any], bool]

_CONSTANT = "_CONSTANT_VALUE"  # for tf_keras, in place of the name of a layer
_SYMBOL_LAYERS = ("TFOpLambda", "SlicingOpLambda")


class RefusedError(Exception):
    """A configuration that is not allowed; the message says why, without the layer."""


class HoldsCodeError(Exception):
    """A configuration that holds code."""


def check(kind: str, config: Mapping[str, Any], is_function: _Known) -> None:
    """Raise unless the configuration of a layer of the class ``kind`` is harmless.

    Args:
      kind: the name of a class.
      config: its configuration, of which only what is special to the class is looked at.
      is_function: whether a name is that of a function which a file may name.

    Raises:
      RefusedError, HoldsCodeError: otherwise.
    """
    rule = _RULES.get(kind)
    if rule is not None:
        rule(config, is_function)


def _lambda(config: Mapping[str, Any], is_function: _Known) -> None:
    # Dicts are objects themselves, which are looked at as such.
    function = config.get("function")
    named = isinstance(function, Mapping) or is_function(function)
    kinds = {config.get(f"{key}_type") for key in ("function", "output_shape", "mask")}
    if not named or not kinds <= {None, "function", "raw"}:
        raise HoldsCodeError
    for key in ("output_shape", "mask"):
        text = [v for v in _leaves(config.get(key)) if isinstance(v, str) and not is_function(v)]
        if text and not isinstance(config[key], Mapping):
            raise HoldsCodeError


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


def _code(config: Mapping[str, Any], is_function: _Known) -> None:
    raise HoldsCodeError


def _symbol(config: Mapping[str, Any], is_function: _Known) -> None:
    name = config.get("function")
    if pure_functions.of_symbol(name) is None:
        raise RefusedError(
            f"calls {name!r} of TensorFlow, which is none of its functions that only compute"
        )


def _operation(config: Mapping[str, Any], is_function: _Known) -> None:
    given = config.get("node_def")
    node = tf.compat.v1.NodeDef()
    try:
        if isinstance(given, Mapping):
            json_format.ParseDict(dict(given), node)
        else:
            node.ParseFromString(str(given).encode("utf-8"))
    except (json_format.ParseError, DecodeError) as error:
        raise RefusedError(f"holds an operation that cannot be read ({error})") from error
    if node.op not in pure_functions.OPERATIONS:
        raise RefusedError(
            f"holds the operation {node.op!r}, which is none of TensorFlow's that only compute"
        )


def _member(config: Mapping[str, Any], is_function: _Known) -> None:
    name = config.get("attr_name")
    if name not in pure_functions.MEMBERS:
        raise RefusedError(f"uses {name!r} of a tensor, which none has")


def _class_method(config: Mapping[str, Any], is_function: _Known) -> None:
    cls, name = config.get("cls_symbol"), config.get("method_name")
    if cls != "RaggedTensor" or name not in pure_functions.CLASS_METHODS:
        raise RefusedError(f"calls {name!r} of the class {cls!r}; only a RaggedTensor's are known")


def _vocabulary(config: Mapping[str, Any], is_function: _Known) -> None:
    path = config.get("vocabulary")
    if isinstance(path, str):
        raise RefusedError(
            f"reads its vocabulary from {path!r}, which is outside of the model: save the model "
            "with the vocabulary as a list"
        )
    for key in ("standardize", "split"):
        if isinstance(config.get(key), str) and not re.fullmatch(r"\w+", config[key]):
            raise RefusedError(f"has the unknown {key}={config[key]!r}")


_RULES: dict[str, Callable[[Mapping[str, Any], _Known], None]] = {
    "Lambda": _lambda,
    # Code of other libraries, pickled or as a graph.
    "TorchModuleWrapper": _code,
    "JaxLayer": _code,
    "FlaxLayer": _code,
    "TFSMLayer": _code,
    # What tf_keras makes of calls of TensorFlow.
    **dict.fromkeys(_SYMBOL_LAYERS, _symbol),
    "TensorFlowOpLayer": _operation,
    "InstanceProperty": _member,
    "InstanceMethod": _member,
    "ClassMethod": _class_method,
    **dict.fromkeys(("StringLookup", "IntegerLookup", "TextVectorization"), _vocabulary),
}


def only_constants(entry: Mapping[str, Any]) -> bool:
    """Whether a layer is called without any tensor of its model, in some place.

    Such a call is computed at once. tf_keras writes it for functions only, never for layers.
    """
    nodes = entry.get("inbound_nodes")
    if entry.get("class_name") in _SYMBOL_LAYERS or not isinstance(nodes, list):
        return False
    return any(node and all(_is_constant(call) for call in _calls(node)) for node in nodes)


def _calls(node: Any) -> list[list[Any]]:
    """The ``[layer, node, tensor, keyword arguments]`` of one call, however they are nested."""
    if isinstance(node, Mapping):
        return [call for part in node.values() for call in _calls(part)]
    if not isinstance(node, list):
        return []
    if node and isinstance(node[0], str):
        return [node]
    return [call for part in node for call in _calls(part)]


def _is_constant(call: list[Any]) -> bool:
    arguments = call[3] if len(call) > 3 else None
    tensors = isinstance(arguments, Mapping) and any(
        isinstance(leaf, str) for value in arguments.values() for leaf in _leaves(value)
    )
    return call[0] == _CONSTANT and not tensors


def unknown(own: bool, name: str, module: Any, keras: str) -> str:
    """What is said of a layer of an unknown class, or of one that names an unknown class.

    Args:
      own: whether it is the layer's own.
      name: of the class.
      module: where the file says that the class is; None where it says nothing.
      keras: the name of the Keras.
    """
    if keras == "keras" and name in symbols.KERAS3:
        return (
            f"is the operation {name!r}, which Keras 3 itself does not load from this kind of "
            "file: save the model as .keras"
        )
    package = module.split(".")[0] if isinstance(module, str) else ""
    given = f"or pass custom_objects={{{name!r}: {name}}}."
    known = package not in {*_NOBODYS, "keras", "tf_keras", *sys.stdlib_module_names}
    of = "" if module is None or own or known else f" of the module {module!r}"
    names = f"{'is of' if own else 'names'} the unknown class {name!r}{of}"
    if known:
        return (
            f"{names}, which stood in the package {package!r} where the file was made. If you "
            f"trust it, import it before loading (on the command line: --import {package}), where "
            f"it must be decorated with @{keras}.saving.register_keras_serializable(), {given}"
        )
    return (
        f"{names}. Before loading, decorate the class with "
        f"@{keras}.saving.register_keras_serializable() and import it (on the command line: "
        f"--import MODULE), {given}"
    )


QUANTIZED = (
    "is quantized by Keras: its weights are rounded already, and train no more. Take the model as "
    "it was saved before model.quantize"
)
# Modules that nobody can import for what a file means by them.
_NOBODYS = ("", "__main__", "builtins")
