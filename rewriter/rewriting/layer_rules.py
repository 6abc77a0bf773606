"""Rules of a recipe for single layers, and recipes with a name."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from rewriter import grid as grids
from rewriter.errors import RecipeError
from rewriter.quantization import quantizers, range_kinds
from rewriter.reading.graph import Graph
from rewriter.reading.hosts import HOSTS, Kernel
from rewriter.reading.roles import Host

POINTWISE = "pointwise"  # a kernel without spatial extent that is no Dense layer's
KINDS = (POINTWISE, *HOSTS)


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """What is different in some layers. Of several rules that match, the first counts.

    Attributes:
      match: names or patterns (``fnmatch``) of linear layers, of the normalizations in them, or of
        the layers whose output a range belongs to.
      kind: classes of linear layers (``"Dense"``, ``"DepthwiseConv2D"``), or ``"pointwise"`` for
        kernels that are one pixel wide, a separable convolution's second among them; None: any.
      kernel_bits: width of the kernels, 2 to 8; None: as the recipe has it.
      per_tensor: one scale for a whole kernel; None: as the recipe has it.
      calibration: how the range of the output is calibrated, see :func:`rewriter.calibrate`; None:
        as the recipe has it.
      ranges: of the kernels and the output: observed or learned, see :class:`Recipe`; None: as the
        recipe has it.

    Raises:
      RecipeError: on construction, naming the bad field.
    """

    match: str | Sequence[str] = "*"
    kind: str | Sequence[str] | None = None
    kernel_bits: int | None = None
    per_tensor: bool | None = None
    calibration: str | None = None
    ranges: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "match", _texts(self.match, "match"))
        if self.kind is not None:
            kinds = _texts(self.kind, "kind")
            unknown = [kind for kind in kinds if kind not in KINDS]
            if unknown:
                raise RecipeError(
                    f"layers: kind must be of {sorted(KINDS)}. Received: {unknown[0]!r}."
                )
            object.__setattr__(self, "kind", kinds)
        if self.kernel_bits is not None:
            grids.width(self.kernel_bits, grids.BITS, "layers", "kernel_bits")
        if self.per_tensor not in (None, True, False):
            raise RecipeError(
                f"layers: per_tensor must be true or false. Received: {self.per_tensor!r}."
            )
        if self.calibration is not None:
            quantizers.calibration_method(self.calibration)
        if self.ranges is not None:
            range_kinds.ranges(self.ranges, "layers: ranges")

    def names(self, *names: str | None) -> bool:
        """Whether one of these names matches."""
        given = [name for name in names if name]
        return any(fnmatch.fnmatchcase(name, pattern) for name in given for pattern in self.match)

    def takes(self, host: Host, kernel: Kernel, *names: str | None) -> bool:
        """Whether it is about this kernel of a layer that has these names."""
        if not self.names(*names):
            return False
        if self.kind is None or host.row.name in self.kind:
            return True
        return POINTWISE in self.kind and is_pointwise(host, kernel)

    @property
    def is_general(self) -> bool:
        """Whether it names no single layer: patterns and kinds only."""
        return any(any(sign in pattern for sign in "*?[") for pattern in self.match)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; what is not set is left out."""
        values = {"match": list(self.match)}
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value is not None:
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return values


def is_pointwise(host: Host, kernel: Kernel) -> bool:
    """Whether a convolution's kernel is one pixel wide and combines channels."""
    if host.row.name == "Dense" or len(kernel.channel_axes) > 1:
        return False
    if kernel.name == "pointwise_kernel":
        return True
    sizes = getattr(host.layer, "kernel_size", None)
    return sizes is not None and all(size == 1 for size in sizes)


def ends(graph: Graph) -> set[int]:
    """The ids of the linear layers before which there is no other, and of those after which.

    Args:
      graph: of the original model.
    """
    hosts = [isinstance(call.role, Host) for call in graph.calls]
    after, before = [False] * len(hosts), [False] * len(hosts)  # whether one is there
    for index, call in enumerate(graph.calls):
        after[index] = any(after[ref.call] or hosts[ref.call] for ref in call.refs)
    for index in reversed(range(len(hosts))):
        for ref in graph.calls[index].refs:
            before[ref.call] = before[ref.call] or before[index] or hosts[index]
    return {
        id(call.layer)
        for index, call in enumerate(graph.calls)
        if hosts[index] and not (after[index] and before[index])
    }


def rules(value: Any) -> tuple[LayerRule, ...]:
    """The rules of a recipe from what a user gave: rules or mappings.

    Raises:
      RecipeError: it is something else, or a field is unknown or bad.
    """
    if isinstance(value, Mapping) or not isinstance(value, (list, tuple)):
        raise RecipeError(
            'layers must be a list of rules such as {"match": "block_*", "kernel_bits": 4}. '
            f"Received: {value!r}."
        )
    known = [field.name for field in dataclasses.fields(LayerRule)]
    result = []
    for item in value:
        if isinstance(item, Mapping):
            unknown = sorted(set(item) - set(known))
            if unknown:
                raise RecipeError(f"layers: unknown field {unknown[0]!r}. Known fields: {known}.")
            item = LayerRule(**item)
        if not isinstance(item, LayerRule):
            raise RecipeError(f"layers: a rule is a JSON object. Received: {item!r}.")
        result.append(item)
    return tuple(result)


def _texts(value: Any, field: str) -> tuple[str, ...]:
    several = (value,) if isinstance(value, str) else value
    if not isinstance(several, (list, tuple)) or not all(isinstance(v, str) for v in several):
        raise RecipeError(f"layers: {field} must be text or a list of texts. Received: {value!r}.")
    return tuple(several)


# Recipes with a name: the fields that differ from the default.
NAMED: dict[str, dict[str, Any]] = {
    # LiteRT's 8-bit specification.
    "int8": {},
    # For devices whose kernels take one scale for a whole kernel.
    "int8-per-tensor": {"layers": [{"per_tensor": True}]},
    # Kernels of 4 bits where LiteRT's default kernels are then smaller and faster.
    "w4a8": {"layers": [{"kind": [POINTWISE, "Dense"], "kernel_bits": 4}]},
    # Kernels of 4 bits wherever LiteRT reads them: the smallest file.
    "w4a8-small": {
        "layers": [
            {
                "kind": [
                    name
                    for name, row in HOSTS.items()
                    if row.operators and all(4 in grids.KERNEL_STORAGE[o] for o in row.operators)
                ],
                "kernel_bits": 4,
            }
        ]
    },
    # The kernels of Dense layers of 2 bits; a file stores them in 4.
    "w2-dense": {"layers": [{"kind": "Dense", "kernel_bits": 2}]},
    # Activations of 16 bits: nearly the float model, at the speed of LiteRT's builtin kernels.
    "int16x8": {"activation_bits": grids.WIDE},
}
