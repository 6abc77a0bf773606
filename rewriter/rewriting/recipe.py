"""The recipe: what a user can choose about the quantization, as one immutable value."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewriter import grid as grids
from rewriter.errors import RecipeError
from rewriter.files import boundaries
from rewriter.layers import preserved
from rewriter.quantization import quantizer_names, quantizers, range_kinds
from rewriter.quantization.pipeline import BatchNormPipeline, pipelines
from rewriter.reading.hosts import Kernel
from rewriter.reading.roles import Host
from rewriter.rewriting import activation_widths, layer_rules

# Fields that the first recipes had not, and what those meant: a file without them means that still.
_LATER: dict[str, Any] = {
    "calibration": "minmax",
    "layers": (),
    "end_bits": grids.BITS,
    "ranges": range_kinds.OBSERVED,
    "activation_bits": grids.BITS,
    "preserve": (),
    "bias_correction": False,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is quantized. The default is LiteRT's 8-bit specification.

    Attributes:
      kernel_quantizer: a quantizer of TFMOT's protocol for every kernel; None: symmetric,
        narrow-range int8, one scale per output channel.
      activation_quantizer: a quantizer of TFMOT's protocol for every activation; None:
        asymmetric int8, one scale per tensor, range observed.
      range_momentum: weight of the old range when the ranges of the activations follow the
        batches in phase ``quantize``; between 0 and 1.

      batch_norm_pipeline: operations on the variables of the batch normalizations: a mapping
        (``{"gamma": op, "beta": op, "moving_mean": op, "moving_variance": op}``, and ``layers``
        and ``phases`` if wanted), a :class:`BatchNormPipeline`, or several of them; of several
        that match a layer the first counts.
      calibration: how calibration makes ranges of what it has seen; see
        :func:`rewriter.calibrate`. None: what suits ``ranges``: for observed ones
        ``"percentile"``, which keeps most of a model's decisions (``benchmarks/ACCURACY.md``; of 16
        bits ``"minmax"``), for learned ones ``"mse"``. JSON without this field means ``"minmax"``.
      layers: rules for single layers, as :class:`LayerRule` or mappings:
        ``[{"match": "block_*", "kernel_bits": 4}]``.
      end_bits: width of the kernels of the first and the last linear layer where a rule for more
        than those, by pattern or kind, would give them fewer.
      ranges: ``"observed"``, or learned by gradients: ``"lsq"`` (Esser et al. 2020,
        arXiv:1902.08153), ``"lsq+"`` (with an offset of activations: Bhalgat et al. 2020,
        arXiv:2004.09576), ``"tqt"`` (powers of two: Jain et al. 2020, arXiv:1903.08066). The
        quantizers of the other fields must then be ours, which say the width. Of activations of 8
        bits nothing is learned, unless the quantizer itself does.
      activation_bits: of all activations, beside no ``activation_quantizer``: 8, or 16 (symmetric).
      preserve: what training keeps of kernels that have it: ``"sparsity"`` (weights that are 0 stay
        0: pruned), ``"clusters"`` (equal weights stay equal: clustered, up to 256 values a
        kernel), or both.
      bias_correction: whether calibration takes back, in the biases, by how much quantization moves
        the mean of what each linear layer computes (Nagel et al. 2019, arXiv:1906.04721).

    Raises:
      RecipeError: on construction, naming the bad field.
    """

    kernel_quantizer: Any = None
    activation_quantizer: Any = None
    range_momentum: float = 0.99
    batch_norm_pipeline: Any = None
    calibration: str | None = None
    layers: Any = ()
    end_bits: int = grids.BITS
    ranges: str = range_kinds.OBSERVED
    activation_bits: int = grids.BITS
    preserve: Any = ()
    bias_correction: bool = False

    def __post_init__(self) -> None:
        for field in ("kernel_quantizer", "activation_quantizer"):
            value = getattr(self, field)
            if isinstance(value, Mapping):
                try:
                    value = quantizer_names.deserialize(value)
                except RecipeError as error:
                    raise RecipeError(f"{field}: {error}") from error
                object.__setattr__(self, field, value)
            if value is not None:
                quantizer_names.check(value, field)
        object.__setattr__(self, "batch_norm_pipeline", pipelines(self.batch_norm_pipeline))
        object.__setattr__(self, "layers", layer_rules.rules(self.layers))
        object.__setattr__(self, "preserve", preserved.kinds(self.preserve))
        if self.calibration is not None:
            quantizers.calibration_method(self.calibration)
        if range_kinds.ranges(self.ranges, "ranges") != range_kinds.OBSERVED:
            if self.kernel_quantizer is not None:
                range_kinds.kernel(self.kernel_quantizer, self.ranges)
            if self.activation_quantizer is not None:
                range_kinds.activation(self.activation_quantizer, self.ranges, self.calibration)
        if self.bias_correction not in (True, False):
            raise RecipeError(
                f"bias_correction must be true or false. Received: {self.bias_correction!r}."
            )
        grids.width(self.end_bits, grids.BITS, "Recipe", "end_bits")
        activation_widths.check(self)
        momentum = self.range_momentum
        is_number = isinstance(momentum, (int, float)) and not isinstance(momentum, bool)
        if not is_number or not 0 <= momentum < 1:
            raise RecipeError(f"range_momentum must be a number in [0, 1). Received: {momentum!r}.")

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; :meth:`from_dict` reads them back."""
        result: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _LATER and value == _LATER[field.name]:
                continue  # so that an earlier version reads it, too
            if field.name == "batch_norm_pipeline":
                value = [pipeline.to_dict() for pipeline in value]
            if field.name == "layers":
                value = [rule.to_dict() for rule in value]
            if field.name == "preserve":
                value = list(value)
            if field.name.endswith("_quantizer") and value is not None:
                value = quantizer_names.serialize(value)
            result[field.name] = value
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that :meth:`to_dict` described.

        Raises:
          RecipeError: for an unknown or a bad field, by name.
        """
        if not isinstance(values, Mapping):
            raise RecipeError(f"A recipe is a JSON object. Received: {values!r}.")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise RecipeError(f"Unknown recipe field {unknown[0]!r}. Known fields: {known}.")
        with boundaries.recipe("The recipe"):
            return cls(**_LATER | dict(values))

    def to_json(self) -> str:
        """The recipe as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe in JSON text.

        Raises:
          RecipeError: if it is not JSON, or a field is bad.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"The recipe is not valid JSON: {error}.") from error
        return cls.from_dict(values)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a JSON file.

        Raises:
          RecipeError: if the file cannot be read or is not a recipe.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"The recipe {str(path)!r} cannot be read: {error}.") from error
        return cls.from_json(text)

    def pipeline_for(self, *names: str | None) -> BatchNormPipeline | None:
        """The pipeline of the batch normalization that has these names."""
        matching = (p for p in self.batch_norm_pipeline if p.applies_to(*names))
        return next(matching, None)

    def new_kernel_quantizer(
        self, host: Host, kernel: Kernel, names: Sequence[str | None], *, at_end: bool
    ) -> Any:
        """A quantizer for one kernel.

        Args:
          host: the layer's role.
          kernel: which of its kernels.
          names: of the layer, and of the normalization in it.
          at_end: whether it is the first or the last linear layer of the model.

        Raises:
          RecipeError: what the recipe says for it cannot be together; it names the layer.
        """
        made = self._kernel_quantizer(host, kernel, names, at_end)
        ranges = self._ranges(r for r in self.layers if r.takes(host, kernel, *names))
        if ranges == range_kinds.OBSERVED:
            return made
        with _of_layer(names):
            return range_kinds.kernel(made, ranges)

    def _kernel_quantizer(
        self, host: Host, kernel: Kernel, names: Sequence[str | None], at_end: bool
    ) -> Any:
        """The same, before what is said of its ranges."""
        rule = next((r for r in self.layers if r.takes(host, kernel, *names)), None)
        if rule is None or (rule.kernel_bits is None and rule.per_tensor is None):
            if self.kernel_quantizer is None:
                return quantizers.PerChannelQuantizer(channel_axes=kernel.channel_axes)
            return quantizer_names.deserialize(quantizer_names.serialize(self.kernel_quantizer))
        bits, per_tensor = rule.kernel_bits, rule.per_tensor
        if bits is None:
            bits = grids.of(self.kernel_quantizer).bits if self.kernel_quantizer else grids.BITS
        if at_end and rule.is_general:
            bits = max(bits, self.end_bits)
        if per_tensor is None:
            per_tensor = isinstance(self.kernel_quantizer, quantizers.PerTensorQuantizer)
        if per_tensor:
            return quantizers.PerTensorQuantizer(bits)
        return quantizers.PerChannelQuantizer(bits, kernel.channel_axes)

    def new_activation_quantizer(self, *names: str | None, given: bool = False) -> Any:
        """A quantizer for one activation range, that of a layer with these names.

        ``given``: whether it is an input of the model; see :func:`range_kinds.activation`, which
        says what is learned.

        Raises:
          RecipeError: what the recipe says for it cannot be together; it names the layer.
        """
        ranges = self._ranges(r for r in self.layers if r.names(*names))
        chosen = (r.calibration for r in self.layers if r.calibration and r.names(*names))
        calibration = next(chosen, self.calibration)
        made = self.activation_quantizer
        if made is not None:
            made = quantizer_names.deserialize(quantizer_names.serialize(made))
        else:
            made = quantizers.RangeQuantizer(
                self.activation_bits,
                momentum=self.range_momentum,
                calibration=calibration or activation_widths.calibration(self.activation_bits),
                held=False,  # until it is calibrated
            )
        if ranges == range_kinds.OBSERVED:
            return made
        with _of_layer(names):
            return range_kinds.activation(made, ranges, calibration, given)

    def _ranges(self, matching: Iterable[layer_rules.LayerRule]) -> str:
        """What the first of the matching rules that says something about ranges says."""
        return next((rule.ranges for rule in matching if rule.ranges), self.ranges)

    def check_names(self, names: Collection[str]) -> None:
        """Raise RecipeError for a rule that is about no layer of these names."""
        for rule in self.layers:
            for pattern in rule.match:
                if pattern != "*" and not fnmatch.filter(names, pattern):
                    raise RecipeError(
                        f"layers: no layer of the model is called {pattern!r}. Its layers: "
                        f"{', '.join(sorted(names)[:8])}, ..."
                    )

    @classmethod
    def named(cls, name: str) -> Recipe:
        """One of the recipes that have a name.

        ``int8``: LiteRT's 8-bit specification, the default; ``int8-per-tensor``: one scale for a
        whole kernel; ``w4a8``: 1x1 convolutions and Dense layers with kernels of 4 bits, smaller
        and faster than ``int8`` with LiteRT's default kernels; ``w4a8-small``: kernels of 4 bits
        wherever LiteRT reads them; ``w2-dense``: Dense layers with kernels of 2 bits (the first and
        the last linear layer keep 8); ``int16x8``: activations of 16 bits, kernels of 8.

        Raises:
          RecipeError: there is no such recipe.
        """
        if name not in layer_rules.NAMED:
            raise RecipeError(
                f"There is no recipe called {name!r}. There are: {', '.join(layer_rules.NAMED)}."
            )
        return cls(**layer_rules.NAMED[name])


@contextlib.contextmanager
def _of_layer(names: Sequence[str | None]) -> Iterator[None]:
    """Within: what is wrong with the recipe is wrong in the first layer that has a name."""
    try:
        yield
    except RecipeError as error:
        name = next(filter(None, names), None)
        raise RecipeError(f"The recipe does not fit {name!r}: {error}") from error
