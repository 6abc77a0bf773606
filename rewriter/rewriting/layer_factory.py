"""Makes the layers of the new model, each with the values of the original's."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import tensorflow as tf

from rewriter import grid as grids
from rewriter import layers
from rewriter.keras_compat import Flavour, paths
from rewriter.keras_compat.variables import read
from rewriter.layers import preserved
from rewriter.quantization import quantizers
from rewriter.reading.graph import Ref
from rewriter.reading.operations import Operation
from rewriter.reading.roles import Host, Role, Within
from rewriter.rewriting import activation_widths, copies
from rewriter.rewriting.recipe import Recipe


class LayerFactory:
    """New layers of one Keras, with the quantizers and pipelines of a recipe."""

    def __init__(self, flavour: Flavour, recipe: Recipe):
        self.flavour = flavour
        self.recipe = recipe
        self.classes = layers.of(flavour)
        self.copies: list[copies.Copy] = []  # of the layers that are being built
        self.preserving: list[Any] = []  # the same, hosts whose kernels are pruned or clustered
        self.shared: Container[int] = ()  # the ids of TensorFlow's variables that several hold
        self.made_of: dict[int, list[Any]] = {}  # by those, the variables of new layers
        self.preserved: set[str] = set()  # what any kernel has of what the recipe preserves

    def finish_copies(self) -> None:
        """Assign the values of the originals, now that the new layers have been built."""
        while self.copies:
            copy = self.copies.pop()
            copy.finish()
            for target, source in copy.pairs() if self.shared else ():
                key = id(self.flavour.tf_variable(source))
                if key in self.shared:
                    self.made_of.setdefault(key, []).append(target)
        while self.preserving:
            preserved.remember(self.preserving.pop())

    def _copy_later(self, new: Any, original: Any) -> None:
        """Have the values of ``original`` in ``new`` when it has been built."""
        variables = getattr(original, "variables", ())
        own = [v for v in variables if id(self.flavour.tf_variable(v)) not in self.shared]
        paths.stand_like(new, original, own)
        copy = copies.Copy(self.flavour, new, original)
        copy.start()
        self.copies.append(copy)

    def clone(self, original: Any, name: str | None = None, changes: Any = None) -> Any:
        """The same layer again; ``changes``: other values in its configuration."""
        new = self.flavour.clone(original, name, changes)
        if self.shared and not self.flavour.is_ours(original):  # ours build what is inside them
            self._build_inside(new, original)
        self._copy_later(new, original)
        return new

    def _build_inside(self, new: Any, original: Any) -> None:
        """Build the layers inside a copy that hold what others do.

        Those of the original were built elsewhere: its call reads them, and may call none.
        """
        for inner, built in zip(
            self.flavour.sublayers(new), self.flavour.sublayers(original), strict=False
        ):
            ids = {id(self.flavour.tf_variable(variable)) for variable in built.variables}
            if not inner.built and any(key in self.shared for key in ids):
                inner.build_from_config(built.get_build_config())

    def quantize(
        self,
        name: str,
        dtype: str,
        clamp: str = "none",
        fixed: tuple[float, float] | None = None,
        owner: str | None = None,
        given: bool = False,
    ) -> Any:
        """A Quantize layer.

        Args:
          name: of the layer.
          dtype: of what it quantizes, whatever the global policy.
          clamp: the activation that it applies.
          fixed: its range, where it learns none.
          owner: the layer that a recipe may call its tensor by.
          given: whether it is of an input of the model.
        """
        if fixed is not None:
            bits = activation_widths.carried(self.recipe)
            quantizer = quantizers.FixedQuantizer(*grids.prescribed(fixed, bits), bits)
        else:
            quantizer = self.recipe.new_activation_quantizer(name, owner, given=given)
        return self.classes.Quantize(quantizer, clamp, name=name, dtype=dtype)

    def as_read(
        self, role: Role, ref: Ref, value: Any, name: str, free: Callable[[str], str]
    ) -> Any:
        """An input of a call as it reads it.

        Those of normalizations of samples have a layer, and so has what a function with a pole at
        0 is of.

        Args:
          role: of the call.
          ref: which tensor it is.
          value: the tensor, on its grid.
          name: of the layer that is called.
          free: of a name: one that no layer has.
        """
        pole = role.pole if isinstance(role, Within) else None
        if isinstance(role, Operation):
            pole = role.options.get("pole")
        if pole is not None and pole.ref == ref:
            dtype = tf.as_dtype(value.dtype).name
            return self.classes.OffZero(pole.width, name=free(f"{name}_input"), dtype=dtype)(value)
        if not isinstance(role, Operation) or role.name != "normalize":
            return value
        options = {key: role.options[key] for key in ("centred", "epsilon", "outer", "groups")}
        return self.classes.StillRows(**options, name=free(f"{name}_input"), dtype="float32")(value)

    def batch_norm(self, original: Any, name: str, *also: str) -> Any:
        """Our layer for a stock one; ``also``: other names that a recipe may call it by."""
        new = self.classes.FusedBatchNormalization.like(original, name)
        new.pipeline = self.recipe.pipeline_for(name, *also) or new.pipeline
        new.activity_regularizer = getattr(original, "activity_regularizer", None)
        self._copy_later(new, original)
        return new

    def freeze(self, layer: Any) -> None:
        """Let the normalization that a layer is, or has, keep its statistics in training."""
        norm = layer if self.flavour.is_batch_norm(layer) else getattr(layer, "batch_norm", None)
        if norm is not None:
            norm.frozen.assign(1)

    def host(
        self,
        host: Host,
        name: str,
        path: str,
        batch_norm: Any,
        norm_path: str,
        output_quantizer: Any,
        *,
        fuses: bool,
        at_end: bool,
    ) -> Any:
        """A linear layer, quantized, with its normalization and activation.

        Args:
          host: the role of the original's call.
          name: of the new layer.
          path: of the original's call.
          batch_norm: the normalization that it takes in, or None.
          norm_path: of the normalization's call.
          output_quantizer: a Quantize layer that serves it alone, or None.
          fuses: whether the activation is one that operators have fused.
          at_end: whether it is the first or the last linear layer of the model.
        """
        original, row = host.layer, host.row
        inner, dtype = self.flavour.stock_clone(original), original.compute_dtype
        self._copy_later(inner, original)
        names = [name, original.name, path]
        norm = None
        if batch_norm is not None:
            names += [batch_norm.name, norm_path]
            norm = self.batch_norm(batch_norm, batch_norm.name, norm_path, original.name, path)
        new = self.classes.QuantizedHost(
            inner,
            norm,
            [
                self.recipe.new_kernel_quantizer(host, kernel, names, at_end=at_end)
                for kernel in row.kernels
            ],
            between=self.quantize("between", dtype, owner=name) if len(row.kernels) > 1 else None,
            before_activation=None
            if fuses
            else self.quantize("before_activation", dtype, owner=name),
            output_quantizer=output_quantizer,
            distributed=host.distributed,
            preserve=self._preserve(host),
            bias_correction=self.recipe.bias_correction,
            name=name,
            # Whatever the global policy: kernels of 16-bit layers are quantized as they are kept.
            dtype="float64" if dtype == "float64" else "float32",
            activity_regularizer=getattr(original, "activity_regularizer", None),
        )
        self.preserving.append(new)
        return new

    def _preserve(self, host: Host) -> tuple[tuple[str, ...], ...]:
        """What each kernel of a linear layer has of what the recipe preserves."""
        attribute, wanted = self.flavour.kernel_attribute, self.recipe.preserve
        if self.flavour.stands_for(type(host.layer)):
            wanted = ()  # what it is computed from is trained, and moves all of its elements
        names = [attribute(host.row.name, kernel.name) for kernel in host.row.kernels]
        kernels = [read(getattr(host.layer, name)) for name in names] if wanted else []
        found = tuple(preserved.found(kernel, wanted) for kernel in kernels)
        self.preserved.update(*found)
        return found
