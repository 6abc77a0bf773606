"""What the names in a file may stand for, decided before anything is looked up or called.

The configuration of a model is a tree of JSON that names classes and functions, and both Kerases
find and call almost anything by such names: a function of any module, a layer that holds byte
code, one that calls any symbol of TensorFlow. So the tree is walked first. A name may stand for a
stock class of the Keras that loads the file, for a stock function that only computes, or for what
is registered with that Keras or given by the user; everything else is refused.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from rewriter.errors import LoadError
from rewriter.keras_compat import trust_layers
from rewriter.keras_compat.names import Names

_everything = contextvars.ContextVar("_everything", default=False)

_OURS = ("keras", "tf_keras")  # the packages whose modules a file may name
_LAYER = "?"  # the name of a layer that has none
# Values that the Kerases write like objects. Those of the third line are checked further; the
# columns of DenseFeatures are looked up among TensorFlow's own alone.
_VALUES = {"__tuple__", "__ellipsis__", "__bytes__", "__slice__", "__keras_tensor__",
           "TensorShape", "TypeSpec", "CompositeTensor",
           "__numpy__", "__tensor__", "__typespec__",
           "NumericColumn", "BucketizedColumn", "IdentityCategoricalColumn",
           "HashedCategoricalColumn", "VocabularyListCategoricalColumn", "CrossedColumn",
           "WeightedCategoricalColumn", "IndicatorColumn", "EmbeddingColumn"}  # fmt: skip
_UNREAD = ("training_config", "model_config", "module", "registered_name")  # in a SavedModel
# What a configuration names by a plain string, too.
_BY_STRING = ("activation", "_regularizer", "_constraint")


@contextlib.contextmanager
def everything() -> Iterator[None]:
    """Within: files are trusted entirely, and may hold code."""
    token = _everything.set(True)
    try:
        yield
    finally:
        _everything.reset(token)


def check(
    config: Any,
    flavour: Names,
    where: str,
    given: Mapping[str, Any] | None = None,
    *,
    revived: bool = False,
) -> None:
    """Raise unless all names in a configuration may be looked up and called.

    Args:
      config: parsed JSON: of a model or layer, or a list of such.
      flavour: the Keras that is going to load it.
      where: what it is from, for messages.
      given: objects of the user's, by name.
      revived: whether it is the list of the objects of a SavedModel: those of unknown classes are
        made of functions in the file, without a class being looked up.

    Raises:
      LoadError: naming the layer.
    """
    if _everything.get():
        return
    judge = _Judge(flavour, where, dict(given or {}))
    if revived:
        for node in config:
            judge.node(node)
        return
    if isinstance(config, Mapping):  # the model is not compiled, those inside of it are
        config = {key: value for key, value in config.items() if key != "compile_config"}
    judge.walk(config)


def count(config: Any) -> int:
    """How many objects a configuration describes."""
    return sum("class_name" in entry for entry in _mappings(config))


def _mappings(config: Any) -> Iterator[Mapping[str, Any]]:
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            yield value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)


class _Judge:
    def __init__(self, flavour: Names, where: str, given: Mapping[str, Any]):
        self.flavour = flavour
        self.where = where
        self.given = given

    def node(self, node: Any) -> None:
        """One object of a SavedModel, where Keras looks at its class name only."""
        node = {key: value for key, value in dict(node).items() if key not in _UNREAD}
        name = node.get("class_name")
        self._called_on_constants(node)
        if isinstance(name, str) and self._user(name) is None:
            if node.get("is_graph_network") or name in ("Functional", "Sequential"):
                del node["class_name"]  # made of its layers, whatever its class
            elif name not in self.flavour.known:
                del node["class_name"]
                node.pop("config", None)
        self.walk(node)

    def walk(self, config: Any) -> None:
        stack = [(config, _LAYER)]
        while stack:
            value, layer = stack.pop()
            if isinstance(value, Mapping):
                if "class_name" in value:
                    layer = _name(value, layer)
                    self._entry(value, layer)
                stack.extend((part, layer) for part in value.values())
            elif isinstance(value, (list, tuple)):
                stack.extend((part, layer) for part in value)

    def _entry(self, entry: Mapping[str, Any], layer: str) -> None:
        name, config = entry["class_name"], entry.get("config")
        if not isinstance(name, str):
            raise self._error(layer, f"has {name!r} for the name of a class")
        if name in _VALUES:
            self._value(name, entry, layer)
        elif name == "__lambda__":
            raise self._code(layer)
        elif name == "function":
            self._function(entry, layer)
        else:
            stock = self._class(entry, layer)
            if not isinstance(config, Mapping):
                return
            try:
                for kind in {name, *stock}:
                    trust_layers.check(kind, config, self._is_function)
            except trust_layers.HoldsCodeError:
                raise self._code(layer) from None
            except trust_layers.RefusedError as error:
                raise self._error(layer, str(error)) from None
            if stock:
                self._strings(config, layer)

    def _value(self, name: str, entry: Mapping[str, Any], layer: str) -> None:
        config = entry.get("config")
        if name != "__typespec__" and entry.get("module") is not None:
            raise self._unknown(entry, layer)  # a class of that name, for a Keras that has no such
        if name in ("__numpy__", "__tensor__"):
            dtype = config.get("dtype") if isinstance(config, Mapping) else None
            try:
                known = isinstance(dtype, str) and tf.as_dtype(dtype) != tf.resource
            except TypeError:
                known = False
            if not known:
                raise self._error(layer, f"has an array of the unknown dtype {dtype!r}")
        elif name == "__typespec__":
            module, kind = entry.get("module"), entry.get("spec_name")
            inside = isinstance(module, str) and module.startswith("tensorflow.python.")
            found = getattr(sys.modules.get(str(module)), str(kind), None) if inside else None
            stock = isinstance(found, type) and issubclass(found, tf.TypeSpec)
            if not stock or entry.get("registered_name") is not None:
                raise self._error(layer, f"has the unknown type {kind!r} of the module {module!r}")

    def _class(self, entry: Mapping[str, Any], layer: str) -> tuple[str, ...]:
        """The stock classes that may be meant; empty if it is one of the user's or ours.

        Each Keras has a way that heeds the module, and one that looks at the name of the class
        alone. Both must come to something that is allowed, or to nothing.
        """
        name, module = entry["class_name"], entry.get("module")
        alone = self._user(name) or self.flavour.stock_class(name)
        if name.endswith("QuantizationConfig") and _in_keras(module):
            raise self._error(layer, trust_layers.QUANTIZED)
        if alone is None and name in self.flavour.known:
            raise self._error(layer, f"names {name!r}, which is no class that a file may name")
        if "module" not in entry:
            found = alone or self.flavour.registered.get(name)
            if found is None and self._user(entry.get("registered_name")) is None:
                raise self._unknown(entry, layer)
            return self._kinds(alone)
        user = self._user(entry.get("registered_name", name))
        if user is not None:
            return self._kinds(alone)
        if module is None or _in_keras(module):
            symbols = [self.flavour.symbol(module, n) for n in _names(entry)] if module else []
            meant = [symbol for symbol in symbols if symbol is not None] or [alone]
            if None not in meant:
                for value in meant:
                    if value is not alone and not self.flavour.is_stock_class(value):
                        raise self._error(
                            layer, f"names {module}.{name}, which is no class that a file may name"
                        )
                return self._kinds(alone, *meant)
        raise self._unknown(entry, layer)

    def _kinds(self, *found: Any) -> tuple[str, ...]:
        return tuple(value.__name__ for value in found if self.flavour.is_stock_class(value))

    def _function(self, entry: Mapping[str, Any], layer: str) -> None:
        name, module = entry.get("config"), entry.get("module")
        if isinstance(name, str) and self._user(name) is not None:
            return
        also = entry.get("registered_name")
        names = [name] if also in (None, "function") else [name, also]
        allowed = all(self._is_function(n) for n in names)
        if module not in (None, "builtins"):
            symbol = self.flavour.symbol(module, str(name)) if _in_keras(module) else None
            allowed = allowed and self.flavour.is_stock_function(symbol)
        if not allowed:
            of = "" if module in (None, "builtins") else f" of the module {module!r}"
            raise self._error(
                layer,
                f"names the function {name!r}{of}, which is neither a function of "
                f"{self.flavour.name} that only computes nor one of yours. If it is yours, "
                f"decorate it with @{self.flavour.name}.saving.register_keras_serializable() and "
                "import it before loading (on the command line: --import MODULE), or pass "
                f"custom_objects={{{name!r}: the function}}",
            )

    def _is_function(self, name: Any) -> bool:
        if not isinstance(name, str):
            return False
        return name in self.flavour.stock_functions or self._user(name) is not None

    def _strings(self, config: Mapping[str, Any], layer: str) -> None:
        for key, value in config.items():
            if not isinstance(value, str) or not key.endswith(_BY_STRING):
                continue
            if not self._is_function(value) and self.flavour.stock_class(value) is None:
                entry = {"config": value}
                self._function(entry, layer)

    def _called_on_constants(self, node: Mapping[str, Any]) -> None:
        config = node.get("config")
        layers = config.get("layers") if isinstance(config, Mapping) else None
        for entry in layers if isinstance(layers, list) else ():
            if isinstance(entry, Mapping) and trust_layers.only_constants(entry):
                raise self._error(
                    _name(entry, _LAYER),
                    "is called on constants only: functions in the file would run while it loads",
                )

    def _user(self, name: Any) -> Any:
        return self.flavour.user_object(name, self.given)

    def _error(self, layer: str, text: str) -> LoadError:
        return LoadError(f"{self._part(layer)} {text}.")

    def _part(self, layer: str) -> str:
        return f"The layer {layer!r} of {self.where}" if layer != _LAYER else f"{self.where}"

    def _code(self, layer: str) -> LoadError:
        return LoadError(
            f"{self._part(layer)} is a Lambda, or holds one: it holds Python code, which could do "
            "anything when the model is loaded. If you trust the source of the file, allow it: "
            "load_model(path, allow_lambda=True), or --allow-lambda on the command line."
        )

    def _unknown(self, entry: Mapping[str, Any], layer: str) -> LoadError:
        of = _is_layer(entry), entry["class_name"], entry.get("module"), self.flavour.name
        return LoadError(f"{self._part(layer)} {trust_layers.unknown(*of)}")


def _name(entry: Mapping[str, Any], otherwise: str) -> str:
    own = entry["config"]["name"] if _is_layer(entry) else None
    name = own or entry.get("name")
    return name if isinstance(name, str) else otherwise


def _is_layer(entry: Mapping[str, Any]) -> bool:
    config = entry.get("config")
    # Policies of dtypes have a name, too, and nothing else.
    return isinstance(config, Mapping) and "name" in config and len(config) > 1


def _names(entry: Mapping[str, Any]) -> list[str]:
    """Under which names a Keras looks for the class in its module."""
    names = [entry["class_name"], entry.get("registered_name")]
    return [name for name in names if isinstance(name, str)]


def _in_keras(module: Any) -> bool:
    return isinstance(module, str) and module.split(".")[0] in _OURS
