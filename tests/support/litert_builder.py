"""A builder of programs, step by step, with random kernels, for the tests of the LiteRT export."""

from __future__ import annotations

import dataclasses

import numpy as np

from rewriter.program import Operator, Program, Quantization, Step, Tensor

CONV = {"strides": [1, 1], "padding": "SAME", "dilations": [1, 1]}


def grid(scale: float, zero_point: int = 0) -> Quantization:
    """A quantization whose scale is a float32."""
    return Quantization(float(np.float32(scale)), zero_point)


class Builder:
    """Appends steps; tensors are named after their steps."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, Tensor] = {}
        self.steps: list[Step] = []
        self.inputs: list[str] = []

    def input(self, name: str, shape: tuple[int, ...], quantization: Quantization | None) -> str:
        """A new input; ``shape`` without the batch."""
        self.tensors[name] = Tensor(name, (None, *shape), quantization)
        self.inputs.append(name)
        return name

    def step(
        self,
        name: str,
        kind: str,
        inputs: list[str],
        shape: tuple[int, ...],
        output: Quantization | None,
        activation: str = "none",
        attributes: dict | None = None,
        **constants: object,
    ) -> str:
        """A new step and its output tensor, ``<name>:out``."""
        operator = Operator(
            kind,
            tuple(self.tensors[i].quantization for i in inputs),
            output,
            attributes or {},
            activation,
            **constants,  # type: ignore[arg-type]
        )
        result = f"{name}:out"
        self.steps.append(Step(name, f"layer_{name}", operator, tuple(inputs), result))
        self.tensors[result] = Tensor(result, (None, *shape), output)
        return result

    def linear(
        self,
        name: str,
        kind: str,
        source: str,
        kernel_shape: tuple[int, ...],
        shape: tuple[int, ...],
        attributes: dict | None = None,
        activation: str = "none",
        per_tensor: bool = False,
        dead: bool = True,
    ) -> str:
        """A step with a random kernel that keeps the signal's spread.

        Channel 1 is dead and its scale bounded from below by its bias; channel 2 does not reach
        127, which the converter would put on another grid.
        """
        axes = {"DEPTHWISE_CONV_2D": (2, 3), "TRANSPOSE_CONV": (2,)}.get(
            kind, (len(kernel_shape) - 1,)
        )
        flat = self.rng.normal(size=kernel_shape)
        moved = np.moveaxis(flat, axes, range(-len(axes), 0))
        channels = int(np.prod([kernel_shape[a] for a in axes]))
        weights = moved.reshape(-1, channels) * np.exp(self.rng.normal(size=channels))
        weights *= np.where(self.rng.random(channels) < 0.4, -1, 1)  # negative gammas
        fan_in = len(weights)
        weights /= 2 * np.sqrt(fan_in)
        top = np.abs(weights).max(axis=0)
        scale = np.full(channels, top.max() / 127) if per_tensor else top / 127
        integers = np.rint(weights / scale)
        if dead and channels > 2:
            integers[:, 1] = 0
            integers[:, 2] = np.rint(integers[:, 2] * 0.6)
        scale = scale.astype(np.float32)
        kernel = np.moveaxis(integers.reshape(moved.shape), range(-len(axes), 0), axes).astype(
            np.int8
        )
        quantization = self.tensors[source].quantization
        spread = quantization.scale * 60 * np.sqrt(fan_in) * float(np.median(scale)) * 50
        bias_real = self.rng.normal(0, spread, channels)
        bias = np.rint(bias_real / (np.float64(quantization.scale) * scale)).astype(np.int32)
        output = grid(
            spread * 4 / 128 * self.rng.uniform(0.8, 1.3), int(self.rng.integers(-40, 40))
        )
        if activation != "none":
            output = grid(output.scale / 2, -128)
        return self.step(
            name,
            kind,
            [source],
            shape,
            output,
            activation,
            attributes,
            kernel=kernel,
            kernel_scale=scale,
            bias=bias,
        )

    def program(self, outputs: list[str], output_names: list[str] | None = None) -> Program:
        """The program, with Keras's names for its inputs and outputs."""
        return Program(
            tuple(self.inputs),
            tuple(outputs),
            self.tensors,
            tuple(self.steps),
            tuple(f"keras_{name}" for name in self.inputs),
            tuple(output_names or [f"head_{i}" for i in range(len(outputs))]),
        )


def replace_operator(builder: Builder, position: int, **changes: object) -> None:
    """Change the operator of a step that was appended."""
    step = builder.steps[position]
    operator = dataclasses.replace(step.operator, **changes)  # type: ignore[arg-type]
    builder.steps[position] = dataclasses.replace(step, operator=operator)
