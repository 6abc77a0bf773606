"""What runs a file: which rules each target has for it, and what in a file breaks them.

A target is a row of data. The rules are those of its documentation and, where its own tool can be
installed (``ethos-u-vela``, ``tflite-micro``), of what that does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rewriter.checking import reading
from rewriter.errors import VerificationError
from rewriter.files import boundaries
from rewriter.litert.file_model import FileModel, FileOperator

_KERNELS = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1}
_NORMALIZED = (
    "a LayerNormalization, GroupNormalization or RMSNormalization, and a division by a tensor, "
    "compute in 16 bits: use another layer (a BatchNormalization), or another target"
)
_WIDE = (
    'rewrite with the recipe "int8": activations of 16 bits (the recipe "int16x8") are in the file'
)
_PER_TENSOR = (
    'rewrite with Recipe(layers=[{"kind": "Dense", "per_tensor": True}]), then calibrate or train'
)


@dataclasses.dataclass(frozen=True)
class Target:
    """What a target takes.

    Attributes:
      about: what it is.
      narrow: the operators that take kernels of less than 8 bits.
      channels: the operators that take a scale for each channel of the kernel.
      activations: the types of activations.
      eight: the operators whose activations must have 8 bits, where others may have 16.
      floating: whether parts in float run, be it on another processor.
      rank: the most axes a tensor may have; None: any number.
      static: whether all sizes must be known.
      batch: whether it takes one sample at a time only.
      joined: the most tensors that it concatenates at once; None: any number.
      versions: the highest version of some operators.
    """

    about: str
    narrow: tuple[str, ...] = ()
    channels: tuple[str, ...] = tuple(_KERNELS)
    activations: tuple[str, ...] = ("INT8",)
    eight: tuple[str, ...] = ()
    floating: bool = False
    rank: int | None = None
    static: bool = True
    batch: bool = False
    joined: int | None = None
    versions: Mapping[str, int] = dataclasses.field(default_factory=dict)


_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
TARGETS: dict[str, Target] = {
    "xnnpack": Target(
        "LiteRT with its default kernels, on phones and computers",
        narrow=("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"),
        activations=("INT8", "INT16", "UINT8"),
        floating=True,
        static=False,
    ),
    "tflite-micro": Target(
        "LiteRT for Microcontrollers; older versions compute a Dense layer with scales for each "
        "channel wrongly, without a word",
        narrow=("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"),
        channels=_CONVOLUTIONS,
        activations=("INT8", "INT16"),
        eight=("RESIZE_BILINEAR", "REDUCE_MAX", "GATHER"),
        floating=True,
        joined=10,
    ),
    "ethos-u": Target(
        "Arm Ethos-U55 and U65, by the compiler Vela",
        channels=_CONVOLUTIONS,
        activations=("INT8", "INT16", "UINT8"),
        eight=("BATCH_MATMUL",),  # others run on the CPU, as Vela says
        rank=4,
        batch=True,
    ),
    "edgetpu": Target(
        "Coral Edge TPU, by its compiler 16",
        channels=_CONVOLUTIONS,
        activations=("INT8", "UINT8"),
        versions={"CONV_2D": 6, "TRANSPOSE_CONV": 4, "QUANTIZE": 3},
    ),
    "stm32n6": Target("STM32N6 with Neural-ART; what is in float runs on its CPU", floating=True),
    "stm32mp2": Target(
        "the NPU of STM32MP2; kernels with scales for each channel fall back to its GPU",
        channels=(),
    ),
    "hexagon": Target(
        "Qualcomm Hexagon by QNN",
        narrow=("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"),
        activations=("INT8", "INT16", "UINT8"),
    ),
    "neutron": Target(
        "NXP eIQ Neutron; what is in float runs on the CPU",
        activations=("INT8", "INT16"),
        floating=True,
    ),
    "nnapi": Target(
        "Android's NNAPI, deprecated since Android 15",
        channels=_CONVOLUTIONS,
        activations=("INT8", "UINT8"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a target does not take.

    Attributes:
      operator: the kind of the operator; empty if it is about a tensor at the border.
      tensor: its output, which has the Keras layer's name.
      reason: what is in the file, and what the target takes.
      remedy: what to do.
    """

    operator: str
    tensor: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        what = f"{self.operator} {self.tensor!r}" if self.operator else repr(self.tensor)
        return f"{what}: {self.reason}; {self.remedy}"


@dataclasses.dataclass(frozen=True)
class Check:
    """Whether a target runs a file.

    Attributes:
      path: the file.
      target: its name.
      findings: what it does not take; empty if it runs.
    """

    path: str
    target: str
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        about = TARGETS[self.target].about
        if not self.findings:
            return f"{self.path}: nothing in it is against the rules of {self.target} ({about})"
        lines = [f"{self.path}: {len(self.findings)} against the rules of {self.target} ({about})"]
        return "\n".join([*lines, *(f"  {finding}" for finding in self.findings)])


def check(path: str | Path, target: str) -> Check:
    """Hold a ``.tflite`` file against the rules of a target.

    Args:
      path: the file, from wherever.
      target: a name in ``TARGETS``.

    Raises:
      VerificationError: there is no such target, or the file is not a LiteRT file.
      OSError: if it cannot be read.
    """
    if target not in TARGETS:
        raise VerificationError(f"There is no target {target!r}. There are: {', '.join(TARGETS)}.")
    content = boundaries.litert_bytes(path)
    with boundaries.litert(f"The file {str(path)!r}"):
        file = reading.read(content)
    return Check(str(path), target, tuple(find(file, TARGETS[target])))


def find(file: FileModel, target: Target) -> Iterator[Finding]:
    """What a target does not take, rule by rule, in the order of execution.

    Args:
      file: what a LiteRT file holds.
      target: a row of ``TARGETS``.
    """
    for rule in _RULES:
        yield from rule(file, target)


def _kernels(file: FileModel, target: Target) -> Iterator[Finding]:
    for op in file.operators:
        if op.kind not in _KERNELS:
            continue
        kernel = file.tensors[op.inputs[_KERNELS[op.kind]]]
        if kernel.dtype in ("INT4", "INT2") and op.kind not in target.narrow:
            yield _finding(
                file,
                op,
                f"its kernel is {kernel.dtype}, 8 bits are taken",
                'rewrite with the recipe "int8"',
            )
        dense = op.kind == "FULLY_CONNECTED"
        scales = len(kernel.scale) if dense else len(set(kernel.scale.tolist()))
        if scales > 1 and op.kind not in target.channels:
            yield _finding(
                file,
                op,
                f"its kernel has {scales} scales, one is safe",
                _PER_TENSOR if dense else 'rewrite with the recipe "int8-per-tensor"',
            )


def _types(file: FileModel, target: Target) -> Iterator[Finding]:
    remedy = _WIDE if any(_reads_wide(file, op) for op in file.operators) else _NORMALIZED
    for op in file.operators:
        for place in op.outputs:
            tensor = file.tensors[place]
            if tensor.floating and not target.floating:
                yield _finding(
                    file,
                    op,
                    "it is computed in float",
                    "export without --allow-float and --float-io",
                )
            wide = tensor.dtype == "INT16"
            types = ("INT8",) if wide and op.kind in target.eight else target.activations
            if tensor.quantized and tensor.dtype not in types:
                taken = f"its output is {tensor.dtype}, taken are {', '.join(types)}"
                yield _finding(file, op, taken, remedy if wide else "export it so")


def _reads_wide(file: FileModel, op: FileOperator) -> bool:
    """Whether a convolution or a product has activations of 16 bits: those in a norm have not."""
    activation = {"TRANSPOSE_CONV": 2}.get(op.kind, 0)
    return op.kind in _KERNELS and file.tensors[op.inputs[activation]].dtype == "INT16"


def _shapes(file: FileModel, target: Target) -> Iterator[Finding]:
    for place in file.inputs:
        tensor = file.tensors[place]
        if target.static and tensor.resizable:
            yield Finding("", tensor.name, "its size may change", "export with --batch 1")
        if target.batch and tensor.shape and tensor.shape[0] > 1:
            yield Finding(
                "",
                tensor.name,
                f"it takes {tensor.shape[0]} samples, one is taken",
                "export with --batch 1",
            )
    for op in file.operators:
        rank = max((len(file.tensors[t].shape) for t in op.outputs), default=0)
        if target.rank is not None and rank > target.rank:
            yield _finding(
                file, op, f"it has {rank} axes, {target.rank} are taken", "reshape around it"
            )


def _joined(file: FileModel, target: Target) -> Iterator[Finding]:
    for op in file.operators:
        if op.kind != "CONCATENATION" or target.joined is None or len(op.inputs) <= target.joined:
            continue
        reason = f"it joins {len(op.inputs)} tensors, {target.joined} are taken"
        yield _finding(file, op, reason, "concatenate some of them first")


def _versions(file: FileModel, target: Target) -> Iterator[Finding]:
    for op in file.operators:
        most = target.versions.get(op.kind)
        if most is not None and op.version > most:
            yield _finding(
                file,
                op,
                f"it is of version {op.version}, known up to {most}",
                "use a recipe and sizes that need no newer version",
            )


_RULES: tuple[Callable[[FileModel, Target], Iterator[Finding]], ...] = (
    _kernels,
    _types,
    _shapes,
    _joined,
    _versions,
)


def _finding(file: FileModel, op: FileOperator, reason: str, remedy: str) -> Finding:
    return Finding(op.kind, file.tensors[op.outputs[0]].name, reason, remedy)
