"""tf_keras (Keras 2)."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import tensorflow as tf

from rewriter.keras_compat import attention, private_tensorflow, symbols
from rewriter.keras_compat.base import Flavour, variable_dtype

# By the names of ``keras.ops``: it puts an operation of its own around each.
_FUNCTIONS: dict[str, Any] = {
    "abs": tf.abs,
    "clip": tf.clip_by_value,
    "concatenate": tf.concat,
    "einsum": tf.einsum,
    "gelu_tanh": functools.partial(tf.nn.gelu, approximate=True),
    "matmul": tf.matmul,
    "max": tf.reduce_max,
    "maximum": tf.maximum,
    "mean": tf.reduce_mean,
    "minimum": tf.minimum,
    "add": tf.add,
    "multiply": tf.multiply,
    "negative": tf.negative,
    "pad": tf.pad,
    "reshape": tf.reshape,
    "softmax": tf.nn.softmax,
    "square": tf.square,
    "split": tf.split,
    "sqrt": tf.sqrt,
    "stack": tf.stack,
    "sum": tf.reduce_sum,
    "transpose": tf.transpose,
}


class TfKeras(Flavour):
    name = "tf_keras"
    symbols = symbols.TENSORFLOW
    slope_argument = "alpha"
    # Its hard sigmoid is clip(x / 5 + 1/2, 0, 1), that of Keras 3 relu6(x + 3) / 6.
    activation_names: ClassVar[Mapping[str, str]] = {
        "swish": "silu",
        "hard_sigmoid": "hard_sigmoid_fifth",
    }

    @functools.cached_property
    def batch_norm_classes(self) -> tuple[type, ...]:  # type: ignore[override]
        base = importlib.import_module(
            "tf_keras.src.layers.normalization.batch_normalization"
        ).BatchNormalizationBase
        return (base,)

    def _operation_name(self, layer: Any) -> str:
        kind = type(layer).__name__
        if kind in ("TFOpLambda", "SlicingOpLambda"):
            return "ops." + layer.symbol
        if kind == "TensorFlowOpLayer":
            return "ops.raw." + layer.node_def.op
        return ""

    def function(self, name: str) -> Any:
        return _FUNCTIONS[name]

    def arguments(self, call: Any) -> tuple[tuple, dict[str, Any]]:
        layer = call.layer
        if type(layer).__name__ != "TensorFlowOpLayer":
            return super().arguments(call)
        tensors, constants = iter(call.refs), layer.constants
        args = [
            constants[i] if i in constants else next(tensors)
            for i in range(len(call.refs) + len(constants))
        ]
        attributes = layer.node_def.attr  # looking up what is not there would add it
        kept = "keep_dims" in attributes and attributes["keep_dims"].b
        return tuple(args), {"keepdims": kept}

    @property
    def batches(self) -> Any:
        """The class of numbered batches that ``fit`` takes."""
        return self.keras.utils.Sequence

    def nodes(self, model: Any) -> Iterator[tuple[Any, tuple, dict, Any]]:
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if node.is_input:
                    yield node.layer, (), {}, node.outputs
                else:
                    args, kwargs = _without_ellipsis(node)
                    yield node.layer, args, kwargs, node.outputs

    def rename(self, layer: Any, name: str) -> None:
        layer._name = name

    def called(self, node: Any) -> Any:
        return node.layer

    def steps_per_execution(self, model: Any) -> int:
        held = getattr(model, "_steps_per_execution", None)
        return 1 if held is None else int(held.numpy())

    @contextlib.contextmanager
    def added_losses(self, layer: Any) -> Iterator[list[Any]]:
        before, added = list(layer._losses), []  # type: ignore[var-annotated]
        try:
            yield added
        finally:
            added += [loss for loss in layer._losses if not any(loss is old for old in before)]
            layer._losses = before

    def is_added_loss(self, layer: Any) -> bool:
        base = importlib.import_module("tf_keras.src.engine.base_layer")
        return type(layer) in (base.AddLoss, base.AddMetric)

    def structure(self, model: Any) -> tuple[Any, Any]:
        return model._nested_inputs, model._nested_outputs

    def is_functional(self, model: Any) -> bool:
        return bool(getattr(model, "_is_graph_network", False))

    def is_tensor(self, value: Any) -> bool:
        return hasattr(value, "_keras_history")

    def input_spec_of(self, model: Any) -> Any:
        spec = getattr(model, "_saved_model_inputs_spec", None)
        if spec is None:
            shape = getattr(model, "_build_input_shape", None)
            if shape is None:
                return None
            return (tuple(shape), "float32")
        return tf.nest.map_structure(lambda s: (tuple(s.shape), s.dtype.name), spec)

    def bessel_correction(self, batch_norm: Any) -> bool:
        return bool(batch_norm.fused)

    def attention(self, layer: Any, rank: int) -> Any:
        # By tf.matmul: a model with tf.einsum of two tensors is saved, but not loaded again.
        return attention.attend(layer, self.function)

    def steps_apart(self, wrapper: Any, batch: int | None) -> bool:
        return bool(batch) and not wrapper._always_use_reshape

    def input_dropout(self, recurrent: Any) -> str:
        if getattr(recurrent, "_could_use_gpu_kernel", False):
            return "Dropout"  # of all steps at once
        several = getattr(recurrent.cell, "implementation", 2) == 1  # one for each gate
        return "" if several else "SpatialDropout1D"

    def drop_in_fused(self, rank: int, axis: int, dtype: str) -> bool:
        return rank in (4, 5) and axis in (1, rank - 1) and dtype != "float64"

    def signature_only(self) -> bool:
        if tf.executing_eagerly():
            return False
        # The name that `Layer._infer_output_signature` gives its graph.
        name = getattr(tf.compat.v1.get_default_graph(), "name", "")
        return name.endswith("_scratch_graph")

    def kernel_attribute(self, class_name: str, name: str) -> str:
        return name

    def add_weight(
        self, layer, name, shape, initializer, *, dtype=None, trainable=True, statistic=False,
        **options,
    ):  # fmt: skip
        if statistic:
            trainable = False
            options["synchronization"] = tf.VariableSynchronization.ON_READ
            options["aggregation"] = tf.VariableAggregation.MEAN
        return layer.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype=dtype or variable_dtype(layer),
            trainable=trainable,
            experimental_autocast=False,
            **options,
        )

    def lookups(self) -> Iterator[Mapping[str, Any]]:
        layers = importlib.import_module("tf_keras.src.layers.serialization")
        layers.populate_deserializable_objects()
        yield layers.LOCAL.ALL_OBJECTS
        initializers = importlib.import_module("tf_keras.src.initializers")
        initializers.populate_deserializable_objects()
        yield initializers.LOCAL.ALL_OBJECTS
        for module in ("regularizers", "constraints", "losses", "metrics", "optimizers",
                       "layers.activation", "activations", "mixed_precision.policy"):  # fmt: skip
            yield vars(importlib.import_module(f"tf_keras.src.{module}"))
        yield vars(self.keras.optimizers.schedules)

    def symbol(self, module: str, name: str) -> Any:
        found = private_tensorflow.symbol(f"{module.removeprefix('tf_')}.{name}")
        if found is not None:
            return found
        inner = module if module.startswith("tf_") else f"tf_{module}"
        return vars(sys.modules.get(inner, object)).get(name)

    @functools.cached_property
    def stock_bases(self) -> tuple[type, ...]:  # type: ignore[override]
        keras = self.keras
        optimizer = importlib.import_module("tf_keras.src.optimizers.optimizer")._BaseOptimizer
        return (
            keras.layers.Layer,  # metrics too
            keras.layers.InputSpec,
            keras.initializers.Initializer,
            keras.regularizers.Regularizer,
            keras.constraints.Constraint,
            keras.mixed_precision.Policy,
            keras.losses.Loss,
            keras.optimizers.legacy.Optimizer,
            keras.optimizers.schedules.LearningRateSchedule,
            optimizer,
        )

    function_modules = ("activations", "losses", "metrics")
    more_functions = ("relu6", "leaky_relu", "silu", "log_softmax")  # of TensorFlow

    keeps_globals = True

    def keeps_code(self, function: Any) -> bool:
        return isinstance(function, types.FunctionType)

    def give_lambda(
        self, config: dict[str, Any], key: str, function: Any, named: dict[str, Any]
    ) -> None:
        module = "module" if key == "function" else f"{key}_module"
        config.update({key: function, f"{key}_type": "raw", module: None})

    def allow_lambda(self) -> Any:
        return self.keras.saving.custom_object_scope({})


def _without_ellipsis(node: Any) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a call; of an index, with slices for ``...``, which no file can hold."""
    args, kwargs = node.call_args, node.call_kwargs
    if type(node.layer).__name__ != "SlicingOpLambda":
        return args, kwargs
    named = "slice_spec" in kwargs
    spec = kwargs["slice_spec"] if named else args[1] if len(args) > 1 else None
    each = spec if isinstance(spec, tuple) else (spec,)
    places = [i for i, one in enumerate(each) if one is Ellipsis]
    if not places:
        return args, kwargs
    taken = sum(one is not Ellipsis and one is not None for one in each)
    free = len(tf.nest.flatten(node.input_tensors)[0].shape) - taken
    first = places[0]
    whole = {"start": None, "stop": None, "step": None}  # a slice, as the layer keeps one
    spec = (*each[:first], *[whole] * free, *each[first + 1 :])
    return (args, {**kwargs, "slice_spec": spec}) if named else ((args[0], spec, *args[2:]), kwargs)
