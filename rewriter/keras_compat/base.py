"""What the package needs from a Keras, and what is the same in both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import tensorflow as tf

from rewriter.errors import LoadError
from rewriter.keras_compat import trust
from rewriter.keras_compat.adapter import QuantizerAdapter
from rewriter.keras_compat.calls import Calls
from rewriter.keras_compat.cloning import Cloning
from rewriter.keras_compat.names import Names

_TENSORFLOW_FUNCTIONS = {tf.identity: "linear"} | {
    getattr(tf.nn, name): name
    for name in ["relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh", "softmax"]
}

PACKAGE = "rewriter"  # the namespace under which layers are registered for saving


class Flavour(Names, Calls, Cloning):
    """What the package needs from one Keras.

    Attributes:
      name: ``"tf_keras"`` or ``"keras"``.
      keras: the Keras module itself.
    """

    name: str

    def __init__(self, keras: ModuleType):
        self.keras = keras
        self.registered: dict[str, type] = {}

    def __repr__(self) -> str:
        return f"<Flavour {self.name} {self.keras.__version__}>"

    def class_name(self, layer: Any) -> str:
        """The name of the stock layer or operation that it computes; ``""`` for a user's own.

        A subclass may compute anything, but where it changes nothing that its base computes with.
        """
        return self.exact_name(layer) or self.unchanged_base(type(layer))

    def exact_name(self, layer: Any) -> str:
        """The canonical name of a stock layer or operation, not of a subclass of one."""
        cls = type(layer)  # layers of `applications` (StochasticDepth, ...) are not among `layers`
        root, *parts = cls.__module__.split(".")
        known = root == self.keras.__name__ and "applications" in parts
        if known or self.layer_class(cls.__name__) is cls:
            return cls.__name__
        return self.stands_for(cls) or self._operation_name(layer)

    def specification(self, layer: Any) -> str | None:
        """The row of :mod:`rewriter.keras_compat.symbols` of an operation, or None."""
        return self.symbols.get(self._operation_name(layer).removeprefix("ops."))

    def arguments(self, call: Any) -> tuple[tuple, dict[str, Any]]:
        """What a call of an operation is given, constants that it keeps itself included."""
        return call.args, call.kwargs

    def activation_name(self, function: Any) -> str:
        """The name of a stock activation function, the same in both Kerases; ``""`` for others.

        A user's function may have any name, so its module is looked at too.
        """
        if function is None:
            return "linear"
        module = getattr(function, "__module__", None) or ""
        if module.split(".")[0] == self.keras.__name__:
            name = getattr(function, "__name__", "")
            return self.activation_names.get(name, name)
        try:
            return _TENSORFLOW_FUNCTIONS.get(function, "")
        except TypeError:  # an object that is not hashable
            return ""

    def is_model(self, layer: Any) -> bool:
        """Whether it is a model of this Keras."""
        return isinstance(layer, self.keras.Model)

    def is_batch_norm(self, layer: Any) -> bool:
        """Whether it is a stock BatchNormalization, or ours in a model built with it."""
        ours = self.registered.get("FusedBatchNormalization")
        return isinstance(layer, self.batch_norm_classes) or type(layer) is ours

    def is_ours(self, layer: Any) -> bool:
        """Whether it is of a class of ours; not if that only stands for a stock one."""
        return type(layer) in self.registered.values() and not self.stands_for(type(layer))

    def passes_on(self, layer: Any) -> bool:
        """Whether it is of ours, and its output what it is given, the first of several."""
        return type(layer) in map(self.registered.get, ("ModelPart", "StillRows", "Tie"))

    def is_layer(self, layer: Any) -> bool:
        """Whether it is a layer of this Keras."""
        return isinstance(layer, self.keras.layers.Layer)

    def serialize(self, layer: Any) -> dict[str, Any]:
        """A layer inside another layer's config, in a form that every file format keeps.

        Keras's own form changes with the format being written, and rebuilds the layer on its
        own, before the layer around it gives the variables their scopes.
        """
        return {"class_name": type(layer).__name__, "config": layer.get_config()}

    def deserialize(self, config: Mapping[str, Any]) -> Any:
        """The layer that :meth:`serialize` described: one of ours or a stock one.

        Raises:
          LoadError: if it is of another class, or its configuration names what may not be called.
        """
        trust.check(config, self, "a part of a layer")
        name = config["class_name"]
        cls: Any = self.registered.get(name) or self.layer_class(name)
        if not self.is_layer_class(cls) or not isinstance(config.get("config"), Mapping):
            raise LoadError(
                f"A part of a layer is written as the name of a layer class of {self.name}, and "
                f"its configuration. Received: {dict(config)!r}."
            )
        return cls.from_config(dict(config["config"]))

    def register(self, cls: type) -> type:
        """Make ``cls`` known to this Keras's loaders."""
        self.registered[cls.__name__] = cls
        return self.keras.saving.register_keras_serializable(package=PACKAGE)(cls)

    def is_layer_class(self, value: Any) -> bool:
        """Whether it is a class of layers of this Keras."""
        return isinstance(value, type) and issubclass(value, self.keras.layers.Layer)

    # What subclasses supply.
    symbols: Mapping[str, str]
    overrides_training = False  # whether a functional model gives every layer its own flag
    batch_norm_classes: tuple[type, ...]

    def _operation_name(self, layer: Any) -> str:
        raise NotImplementedError

    def steps_per_execution(self, model: Any) -> int:
        """How many steps ``fit`` takes between two calls of its callbacks."""
        raise NotImplementedError

    def nodes(self, model: Any) -> Iterator[tuple[Any, tuple, dict, Any]]:
        """``(layer, args, kwargs, outputs)`` of each call, in topological order."""
        raise NotImplementedError

    def structure(self, model: Any) -> tuple[Any, Any]:
        """The model's symbolic inputs and outputs, nested as the user gave them."""
        raise NotImplementedError

    def output_names(self, model: Any) -> Sequence[str]:
        """One name per flattened output of a functional model or Sequential."""
        return model.output_names

    def added_losses(self, layer: Any) -> contextlib.AbstractContextManager[list[Any]]:
        """Within, ``layer`` is called on symbolic tensors; afterwards the losses it has added."""
        return contextlib.nullcontext([])

    def infers_sizes(self, operation: Any) -> bool:
        """Whether an operation of a call on symbolic tensors knows all sizes that it was given.

        A batch's size is ``None`` there. Where it can be inferred, it will be.
        """
        return True

    def is_added_loss(self, layer: Any) -> bool:
        """Whether it is what ``add_loss`` or ``add_metric`` puts into a functional graph."""
        return False

    batches: Any  # the class of numbered batches that `fit` takes
    is_functional: Any  # whether a model is one, or a Sequential that is built
    is_tensor: Any  # whether a value is a symbolic Keras tensor

    def input_spec_of(self, model: Any) -> Any:
        """Structure of ``(shape, dtype)`` that a subclassed model was built on, or None."""
        raise NotImplementedError

    def bessel_correction(self, batch_norm: Any) -> bool:
        """Whether this stock layer puts the n/(n-1) corrected variance into its average."""
        raise NotImplementedError

    def attention(self, layer: Any, rank: int) -> Any:
        """What a ``MultiHeadAttention`` of tensors of this rank does, by layers that are saved."""
        raise NotImplementedError

    def steps_apart(self, wrapper: Any, batch: int | None) -> bool:
        """Whether a ``TimeDistributed`` calls its layer for each step; ``batch``: if fixed."""
        raise NotImplementedError

    def drop_in_fused(self, rank: int, axis: int, dtype: str) -> bool:
        """Whether the stock layer would use the fused kernel for this axis (from 0 on)."""
        raise NotImplementedError

    def signature_only(self) -> bool:
        """Whether a layer is being called only to learn the shape and dtype of its output.

        A layer may then return a placeholder. tf_keras makes such a call for every layer of a
        functional model and throws the graph away; Keras 3 asks ``compute_output_shape``.
        """
        return False

    def complete_shape(self, layer: Any, input_shapes: Sequence[Any]) -> None:
        """Let a new, unbuilt layer say the sizes of its output that its inputs' give it."""

    def kernel_attribute(self, class_name: str, name: str) -> str:
        """The attribute that holds the kernel ``name`` of the tf_keras layer ``class_name``."""
        raise NotImplementedError

    def add_weight(
        self,
        layer: Any,
        name: str,
        shape: Sequence[int],
        initializer: Any,
        *,
        dtype: str | None = None,
        trainable: bool = True,
        statistic: bool = False,
        **options: Any,
    ) -> Any:
        """A variable of ``layer``, never autocast; ``statistic``: a moving average of batches."""
        raise NotImplementedError

    def part_scope(self, name: str) -> Any:
        """The TensorFlow name scope of variables, whatever scope it stands in.

        For the parts of a layer: their weights are called as in the original model. For our
        scalars: the same few names in every layer, because TensorFlow keeps some 35 KB for every
        name that a variable was ever created under.
        """
        return tf.name_scope(name + "/")

    def is_variable(self, value: Any) -> bool:
        """Whether a value is a variable, of Keras or of TensorFlow."""
        return isinstance(value, (tf.Variable, getattr(self.keras, "Variable", tf.Variable)))

    def tf_variable(self, variable: Any) -> tf.Variable:
        """The TensorFlow variable under a Keras variable."""
        return variable

    def save_hdf5(self, model: Any, file: Any) -> None:
        """Save a model to an open ``h5py.File``."""
        model.save(file)

    def keep(self, layer: Any, name: str, variable: Any) -> None:
        """Let TensorFlow's checkpoints of ``layer`` hold a variable that is no attribute of it."""

    def static_training(self, training: Any) -> Any:
        """``training`` as a bool where it is known while tracing, else a tensor."""
        if training is None:
            return False
        if isinstance(training, (bool, int)):
            return bool(training)
        value = tf.get_static_value(training)
        return training if value is None else bool(value)

    def quantizer_adapter(self, layer: Any, dtype: str | None = None) -> Any:
        """What a TFMOT quantizer's ``build`` gets as its layer: tf_keras's ``add_weight``.

        ``dtype``: of the variables; None: as the layer's own.
        """
        return QuantizerAdapter(self, layer, dtype)

    def is_lambda(self, layer: Any) -> bool:
        """Whether it is a stock ``Lambda`` layer."""
        return type(layer) is self.layer_class("Lambda")

    keeps_globals: bool  # whether a lambda that is loaded finds the globals of its module

    def keeps_code(self, function: Any) -> bool:
        """Whether a ``Lambda`` layer is saved with the code of this function, not its name."""
        raise NotImplementedError

    def give_lambda(
        self, config: dict[str, Any], key: str, function: Any, named: dict[str, Any]
    ) -> None:
        """Put a function into the configuration of a ``Lambda`` layer, as it is.

        ``named``: takes what ``from_config`` must find among the custom objects.
        """
        raise NotImplementedError

    def allow_lambda(self) -> Any:
        """A context in which layers that hold Python code may be deserialized."""
        raise NotImplementedError


def variable_dtype(layer: Any) -> str:
    """The dtype of the variables that ``layer`` adds."""
    # Statistics and ranges of 16-bit layers are kept in float32, as the stock layers do.
    dtype = layer.dtype or "float32"
    return "float32" if dtype in ("float16", "bfloat16") else dtype
