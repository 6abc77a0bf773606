"""Random programs for the tests of the LiteRT export."""

from __future__ import annotations

from litert_builder import CONV, Builder, grid
from rewriter.program import Program, Quantization

_KINDS = (
    *("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SUB", "MUL", "MAXIMUM", "CONCATENATION"),
    *("MAX_POOL_2D", "AVERAGE_POOL_2D", "RESHAPE", "TRANSPOSE", "PAD", "LOGISTIC", "TANH"),
    *("LEAKY_RELU", "ELU", "HARD_SWISH", "RELU", "RELU6", "QUANTIZE"),
)


def random_program(seed: int, count: int = 14) -> Program:
    """A random graph: branches, shared tensors, dead ends as outputs, every kind of operator."""
    b = Builder(seed)
    rng = b.rng
    for i in range(int(rng.integers(1, 3))):
        b.input(f"in{i}", (6, 6, 4), grid(rng.uniform(0.01, 0.1), int(rng.integers(-128, 128))))
    tensors = list(b.inputs)

    def shape_of(name: str) -> tuple[int, ...]:
        return tuple(n or 1 for n in b.tensors[name].shape[1:])

    def on_grid(name: str, label: str, quantization: Quantization) -> str:
        if b.tensors[name].quantization == quantization:
            return name
        return b.step(label, "QUANTIZE", [name], shape_of(name), quantization)

    for i in range(count):
        kind = str(rng.choice(_KINDS))
        name, x = f"s{i}/{kind.lower()}", str(rng.choice(tensors[-4:]))
        shape, q = shape_of(x), b.tensors[x].quantization
        h, w, c = shape
        free = grid(q.scale * rng.uniform(0.4, 1.4), int(rng.integers(-128, 128)))
        activation = str(rng.choice(["none", "relu", "relu6"]))
        partners = [t for t in tensors if shape_of(t) == shape]
        other = str(rng.choice(partners))
        if kind == "CONV_2D":
            out = int(rng.integers(3, 7))
            y = b.linear(name, kind, x, (3, 3, c, out), (h, w, out), CONV, activation)
        elif kind == "DEPTHWISE_CONV_2D":
            size = int(rng.choice([1, 3]))
            y = b.linear(name, kind, x, (size, size, c, 1), shape, CONV, activation)
        elif kind in ("ADD", "SUB", "MUL"):
            second = b.tensors[other].quantization
            scale = 60 * q.scale * second.scale if kind == "MUL" else q.scale + second.scale
            y = b.step(name, kind, [x, other], shape, grid(scale, free.zero_point), activation)
        elif kind in ("MAXIMUM", "CONCATENATION"):
            same = [on_grid(t, f"{name}_grid{n}", free) for n, t in enumerate([x, other])]
            wide = (h, w, 2 * c) if kind == "CONCATENATION" else shape
            attributes = {"axis": -1} if kind == "CONCATENATION" else {}
            y = b.step(name, kind, same, wide, free, attributes=attributes)
        elif kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D"):
            window = {"pool_size": [3, 3], "strides": [1, 1], "padding": "SAME"}
            y = b.step(name, kind, [x], shape, q, attributes=window)
        elif kind == "RESHAPE":
            y = b.step(name, kind, [x], (w, h, c), q, attributes={"shape": [w, h, c]})
        elif kind == "TRANSPOSE":
            y = b.step(name, kind, [x], (w, h, c), q, attributes={"perm": [0, 2, 1, 3]})
        elif kind == "PAD":
            pads = {"paddings": [[0, 0], [0, 1], [1, 0], [0, 0]]}
            y = b.step(name, kind, [x], (h + 1, w + 1, c), q, attributes=pads)
        elif kind in ("LOGISTIC", "TANH"):
            fixed = Quantization(1 / 256, -128) if kind == "LOGISTIC" else Quantization(1 / 128, 0)
            y = b.step(name, kind, [x], shape, fixed)
        else:
            attributes = {"alpha": 0.3} if kind == "LEAKY_RELU" else {}
            y = b.step(name, kind, [x], shape, free, attributes=attributes)
        tensors.append(y)
    used = {i for s in b.steps for i in s.inputs}
    ends = [s.output for s in b.steps if s.output not in used]
    return b.program([*ends, *(str(t) for t in rng.choice(tensors, 2))])
