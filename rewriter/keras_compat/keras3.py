"""Keras 3 on TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from rewriter.keras_compat import attention, references, symbols
from rewriter.keras_compat.base import Flavour, variable_dtype
from rewriter.keras_compat.calls import flat_layers

# What a MultiHeadAttention may be given beside query, value and key.
_MASKS = ("attention_mask", "use_causal_mask")


class Keras3(Flavour):
    name = "keras"
    symbols = symbols.KERAS3
    slope_argument = "negative_slope"
    overrides_training = True
    activation_names: ClassVar[Mapping[str, str]] = {}

    @functools.cached_property
    def batch_norm_classes(self) -> tuple[type, ...]:  # type: ignore[override]
        return (self.keras.layers.BatchNormalization,)

    def _operation_name(self, layer: Any) -> str:
        cls = type(layer)
        if cls.__module__.startswith("keras.src.ops"):
            return "ops." + cls.__name__
        return ""

    def function(self, name: str) -> Any:
        if name == "gelu_tanh":
            return functools.partial(self.keras.ops.gelu, approximate=True)
        return getattr(self.keras.ops, name)

    def nodes(self, model: Any) -> Iterator[tuple[Any, tuple, dict, Any]]:
        model = self._functional(model)
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if node.is_input:
                    yield node.operation, (), {}, node.outputs
                else:
                    arguments = node.arguments
                    yield node.operation, arguments.args, arguments.kwargs, node.outputs

    @property
    def batches(self) -> Any:
        """The class of numbered batches that ``fit`` takes."""
        return self.keras.utils.PyDataset

    def infers_sizes(self, operation: Any) -> bool:
        if self.is_layer(operation):
            return True
        sizes = getattr(operation, "newshape", None)
        if isinstance(sizes, tuple) and sizes.count(None) == 1 and -1 not in sizes:
            operation.newshape = tuple(-1 if size is None else size for size in sizes)
            if getattr(operation, "_auto_config", None) is not None:  # what it is copied by
                operation._auto_config.config["newshape"] = operation.newshape
        public = [value for name, value in vars(operation).items() if name[0] != "_"]
        return not any(isinstance(v, (tuple, list)) and any(n is None for n in v) for v in public)

    def rename(self, layer: Any, name: str) -> None:
        layer.name = name

    def build_by_calls(self, layer: Any) -> None:
        own = getattr(type(layer), "get_build_config", None)
        stock = own is self.keras.layers.Layer.get_build_config
        if self.is_layer(layer) and stock and not (self.class_name(layer) or self.is_ours(layer)):
            object.__setattr__(layer, "get_build_config", lambda: None)

    def called(self, node: Any) -> Any:
        return node.operation

    def steps_per_execution(self, model: Any) -> int:
        return int(getattr(model, "steps_per_execution", None) or 1)

    @contextlib.contextmanager
    def added_losses(self, layer: Any) -> Iterator[list[Any]]:
        before = {id(part): list(getattr(part, "_losses", ())) for part in flat_layers(layer)}
        added: list[Any] = []
        try:
            yield added
        finally:
            for part in flat_layers(layer):
                held = getattr(part, "_losses", [])
                added += held[len(before.get(id(part), ())) :]
                held[:] = before.get(id(part), ())

    def _functional(self, model: Any) -> Any:
        return getattr(model, "_functional", None) or model

    def structure(self, model: Any) -> tuple[Any, Any]:
        functional = self._functional(model)
        return functional._inputs_struct, functional._outputs_struct

    def output_names(self, model: Any) -> Sequence[str]:
        return self._functional(model).output_names

    def is_functional(self, model: Any) -> bool:
        return hasattr(self._functional(model), "_nodes_by_depth")

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, self.keras.KerasTensor)

    def input_spec_of(self, model: Any) -> Any:
        shapes = getattr(model, "_build_shapes_dict", None)
        if not shapes:
            return None
        if len(shapes) != 1:
            return None  # of several arguments
        return _specification(next(iter(shapes.values())))

    def bessel_correction(self, batch_norm: Any) -> bool:
        return False

    def attention(self, layer: Any, rank: int) -> Any:
        # Of later versions than the oldest supported one.
        more = (getattr(layer, name, None) for name in ("_use_gate", "_sliding_window"))
        if any(more):
            return layer.call
        ours = attention.attend(layer, self.function)

        def call(*args: Any, **options: Any) -> Any:
            given = [options.get(name) for name in _MASKS]
            masks = len(args) > 3 or any(mask is not None and mask is not False for mask in given)
            return (layer.call if rank == 3 and not masks else ours)(*args, **options)

        return call

    def steps_apart(self, wrapper: Any, batch: int | None) -> bool:
        return True

    def input_dropout(self, recurrent: Any) -> str:
        several = getattr(recurrent.cell, "dropout_mask_count", None)  # one for each gate
        return "SpatialDropout1D" if several is None else ""

    def drop_in_fused(self, rank: int, axis: int, dtype: str) -> bool:
        return False

    def complete_shape(self, layer: Any, input_shapes: Sequence[Any]) -> None:
        # It leaves a size open that `output_shape` does, also where the input has it.
        partial = getattr(layer, "partial_output_shape", None)
        if self.class_name(layer) != "EinsumDense" or partial is None or "." in layer.equation:
            return
        left, output = layer.equation.replace(" ", "").split("->")
        sizes = dict(zip(left.split(",")[0], input_shapes[0], strict=True))
        sizes = {label: size for label, size in sizes.items() if size is not None}
        found = [
            size if size is not None else sizes.get(label)
            for label, size in zip(output[1:], partial, strict=True)
        ]
        layer.partial_output_shape = tuple(found)

    def kernel_attribute(self, class_name: str, name: str) -> str:
        if class_name.startswith("DepthwiseConv") and name == "depthwise_kernel":
            return "kernel"
        return name

    def add_weight(
        self, layer, name, shape, initializer, *, dtype=None, trainable=True, statistic=False,
        synchronization=None, aggregation=tf.VariableAggregation.NONE, **options,
    ):  # fmt: skip
        if statistic:
            trainable, aggregation = False, tf.VariableAggregation.MEAN
        with self.part_scope(name):
            return layer.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                dtype=dtype or variable_dtype(layer),
                trainable=trainable,
                autocast=False,
                aggregation=aggregation.name.lower(),
                **options,
            )

    def part_scope(self, name: str) -> Any:
        # Variables have their paths from Keras. TensorFlow compiles an operation of its own for
        # every new name of a variable, which takes longer than everything else about it.
        return tf.name_scope("")

    def tf_variable(self, variable: Any) -> tf.Variable:
        return variable._value

    def save_hdf5(self, model: Any, file: Any) -> None:
        module = importlib.import_module("keras.src.legacy.saving.legacy_h5_format")
        module.save_model_to_hdf5(model, file)

    def keep(self, layer: Any, name: str, variable: Any) -> None:
        # Only attributes get there, and Keras's own dicts do not count.
        setattr(layer, f"_{name}_variable", variable)

    def lookups(self) -> Iterator[Mapping[str, Any]]:
        for module in ("layers", "models", "dtype_policies", "activations", "initializers",
                       "regularizers", "constraints", "quantizers", "losses", "metrics",
                       "optimizers"):  # fmt: skip
            inner = importlib.import_module(f"keras.src.{module}")
            yield getattr(inner, "ALL_OBJECTS_DICT", vars(inner))
        yield vars(self.keras.optimizers.schedules)

    def symbol(self, module: str, name: str) -> Any:
        if module.split(".")[0] != "keras":
            return None
        export = importlib.import_module("keras.src.api_export")
        found = export.get_symbol_from_name(f"{module}.{name}")
        return found if found is not None else vars(sys.modules.get(module, object)).get(name)

    @functools.cached_property
    def stock_bases(self) -> tuple[type, ...]:  # type: ignore[override]
        keras = self.keras
        saveable = importlib.import_module("keras.src.saving.keras_saveable").KerasSaveable
        return (
            saveable,  # layers, operations, losses, metrics and optimizers
            keras.Initializer,
            keras.Regularizer,
            keras.Quantizer,
            keras.InputSpec,
            keras.DTypePolicy,
            keras.constraints.Constraint,
            keras.random.SeedGenerator,
            keras.optimizers.schedules.LearningRateSchedule,
            keras.dtype_policies.DTypePolicyMap,
        )

    function_modules = ("activations", "losses", "metrics", "ops")

    keeps_globals = False

    def keeps_code(self, function: Any) -> bool:
        return getattr(function, "__name__", "") == "<lambda>"

    def give_lambda(
        self, config: dict[str, Any], key: str, function: Any, named: dict[str, Any]
    ) -> None:
        # Its `from_config` passes a mask on as it is.
        config[key] = function if key == "mask" else references.by_name(function, named)

    def allow_lambda(self) -> Any:
        return importlib.import_module("keras.src.saving").serialization_lib.SafeModeScope(False)


def _specification(shapes: Any) -> Any:
    """``(shape, dtype)`` in the place of every shape; None if there is anything else."""
    if isinstance(shapes, Mapping):
        found: Any = {key: _specification(value) for key, value in shapes.items()}
        return None if None in found.values() else found
    if not isinstance(shapes, (tuple, list)):
        return None
    if all(isinstance(size, (int, type(None))) for size in shapes):
        return tuple(shapes), "float32"
    found = [_specification(value) for value in shapes]
    return None if None in found else found
