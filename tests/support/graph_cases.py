"""Functions of TensorFlow's own operators, as people write models without Keras.

Each case makes its variables on a module and gives the function; where stock layers exist for what
it computes, it names those that must be among the layers of the lifted model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

IMAGE = (8, 8, 4)
Function = Callable[[Any], Any]


class Variables(tf.Module):
    """Makes variables in a fixed order from one generator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(7)
        self.all: list[tf.Variable] = []

    def __call__(self, name: str, *shape: int, positive: bool = False) -> tf.Variable:
        values = self.generator.normal(size=shape) * 0.4
        if positive:
            values = self.generator.uniform(0.5, 2, shape)
        self.all.append(tf.Variable(values.astype(np.float32), name=name))
        return self.all[-1]


@dataclasses.dataclass(frozen=True)
class Case:
    """One function.

    Attributes:
      make: of ``Variables``: the function.
      shape: of a sample.
      layers: names of classes of which the lifted model must have a layer each.
    """

    make: Callable[[Variables], Function]
    shape: tuple[int, ...] = IMAGE
    layers: tuple[str, ...] = ()


def _conv(strides: Any = 1, padding: Any = "SAME", dilation: int = 1, groups: int = 1) -> Any:
    def make(v: Variables) -> Function:
        kernel = v("conv/kernel", 3, 3, 4 // groups, 6)
        bias = v("conv/bias", 6) if groups == 1 else None

        def run(x: Any) -> Any:
            y = tf.nn.conv2d(x, kernel, strides, padding, dilations=dilation)
            # A bias is fused by TensorFlow on its CPU, which then knows no groups.
            return y if bias is None else tf.nn.bias_add(y, bias)

        return run

    return make


def _conv_added(v: Variables) -> Function:
    kernel, bias = v("conv/kernel", 3, 3, 4, 6), v("conv/bias", 6)
    return lambda x: bias + tf.nn.conv2d(x, kernel, 2, "VALID")


def _conv_called(normalized: bool) -> Any:
    """What a function makes of it, where a call was, is handed on by operators that do nothing."""

    def make(v: Variables) -> Function:
        kernel, bias = v("conv/kernel", 3, 3, 4, 6), v("conv/bias", 6)
        gamma, beta, mean = v("bn/gamma", 6), v("bn/beta", 6), v("bn/mean", 6)
        variance = v("bn/variance", 6, positive=True)

        def run(x: Any) -> Any:
            x = tf.identity(tf.nn.conv2d(tf.identity(x), kernel, 1, "SAME"))
            x = tf.ensure_shape(tf.nn.bias_add(x, bias), (None, *IMAGE[:2], 6))
            if not normalized:
                return x
            root = tf.math.rsqrt(variance + 1e-3) * gamma
            return tf.identity(x * root) + (beta - mean * root)

        return run

    return make


def _conv_1d(v: Variables) -> Function:
    kernel = v("conv/kernel", 3, 4, 6)
    return lambda x: tf.nn.conv1d(x, kernel, 1, "SAME")


def _conv_3d(v: Variables) -> Function:
    kernel = v("conv/kernel", 3, 3, 3, 4, 6)
    return lambda x: tf.nn.conv3d(x, kernel, (1, 1, 1, 1, 1), "SAME")


def _depthwise(strides: int = 1, dilation: int = 1) -> Any:
    def make(v: Variables) -> Function:
        kernel = v("dw/kernel", 3, 3, 4, 2)
        return lambda x: tf.nn.depthwise_conv2d(
            x, kernel, (1, strides, strides, 1), "SAME", dilations=(dilation, dilation)
        )

    return make


def _through_batch(v: Variables) -> Function:
    """A dilation as TensorFlow 1 wrote it."""
    kernel = v("conv/kernel", 3, 3, 4, 6)

    def run(x: Any) -> Any:
        x = tf.space_to_batch_nd(x, (2, 2), ((2, 2), (2, 2)))
        return tf.batch_to_space(tf.nn.conv2d(x, kernel, 1, "VALID"), (2, 2), ((0, 0), (0, 0)))

    return run


def _through_batch_unevenly(v: Variables) -> Function:
    """As above, where the size is no multiple of the rate; with a bias on the way."""
    kernel, bias = v("conv/kernel", 3, 3, 4, 6), v("conv/bias", 6)

    def run(x: Any) -> Any:
        x = tf.space_to_batch_nd(x, (2, 3), ((2, 3), (1, 1)))
        x = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "VALID"), bias)
        return tf.nn.relu(tf.batch_to_space(x, (2, 3), ((0, 1), (0, 1))))

    return run


def _transposed(size: int, padding: str, computed: bool) -> Any:
    def make(v: Variables) -> Function:
        kernel = v("up/kernel", 3, 3, 6, 4)

        def run(x: Any) -> Any:
            batch = tf.shape(x)[0]
            sides = (tf.shape(x)[1] * 2, tf.shape(x)[2] * 2) if computed else (size, size)
            return tf.nn.conv2d_transpose(x, kernel, tf.stack([batch, *sides, 6]), 2, padding)

        return run

    return make


def _layer_norm(form: str, axis: int = -1) -> Any:
    def make(v: Variables) -> Function:
        gamma, beta = v("ln/gamma", 4), v("ln/beta", 4)

        def run(x: Any) -> Any:
            mean, variance = tf.nn.moments(x, axis, keepdims=True)
            if form == "by hand":
                return gamma * (x - mean) / tf.sqrt(variance + 1e-5) + beta
            if form == "keras 3":  # which averages over the last axis, whatever the rank is
                g, b = (tf.reshape(t, (1, 1, 1, 4)) for t in (gamma, beta))
                return tf.nn.batch_normalization(x, mean, variance, b, g, 1e-6)
            if form == "alone":
                return (x - mean) * tf.math.rsqrt(variance + 1e-3)
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

        return run

    return make


def _embedding(v: Variables) -> Function:
    table = v("embedding/table", 5, 6)
    return lambda x: tf.gather(table, tf.cast(tf.clip_by_value(x + 2, 0, 4), tf.int32))


def _padded_by_hand(v: Variables) -> Function:
    kernel = v("conv/kernel", 3, 3, 4, 6)
    return lambda x: tf.nn.conv2d(tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), kernel, 1, "VALID")


def _reflected(v: Variables) -> Function:
    kernel = v("conv/kernel", 3, 3, 4, 6)
    pairs = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lambda x: tf.nn.conv2d(tf.pad(x, pairs, "REFLECT"), kernel, 1, "VALID")


def _norm(form: str) -> Any:
    """The same normalization after a convolution, multiplied and added in another order."""

    def make(v: Variables) -> Function:
        kernel = v("conv/kernel", 3, 3, 4, 6)
        gamma, beta = v("bn/gamma", 6), v("bn/beta", 6)
        mean, variance = v("bn/mean", 6), v("bn/variance", 6, positive=True)
        flat = [gamma, beta, mean, variance]

        def run(x: Any) -> Any:
            x = tf.nn.conv2d(x, kernel, 1, "SAME")
            g, b, m, s = (tf.reshape(t, (1, 1, 1, 6)) for t in flat)
            root = tf.math.rsqrt(s + 1e-3)
            if form == "fused":
                return tf.compat.v1.nn.fused_batch_norm(
                    x, gamma, beta, mean, variance, 1e-3, is_training=False
                )[0]
            if form == "tf.nn":
                return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)
            if form == "keras 3":
                return x * (root * g) + (b - m * (root * g))
            if form == "as in the paper":
                return g * ((x - m) * root) + b
            if form == "divided":
                return (x - m) / tf.sqrt(s + 1e-3) * g + b
            if form == "divided at once":
                return g * (x - m) / tf.sqrt(1e-3 + s) + b
            if form == "mean last":
                return (x * root * g + b) - m * root * g
            if form == "without gamma":
                return (x - m) * root + b
            if form == "mean alone":
                return x * root + -m * root
            if form == "power":
                return (x - m) * tf.pow(s + 1e-3, -0.5) * g + b
            return (x - m) * root * g

        return run

    return make


def _norm_twice(v: Variables) -> Function:
    """Two normalizations in a row, each with its own statistics."""
    vectors = [
        [v(f"bn{i}/gamma", 4), v(f"bn{i}/beta", 4), v(f"bn{i}/mean", 4),
         v(f"bn{i}/variance", 4, positive=True)] for i in range(2)
    ]  # fmt: skip

    def run(x: Any) -> Any:
        for gamma, beta, mean, variance in vectors:
            x = tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)
        return x

    return run


def _dense_norm(v: Variables) -> Function:
    kernel, bias = v("dense/kernel", 4, 6), v("dense/bias", 6)
    gamma, beta = v("bn/gamma", 6), v("bn/beta", 6)
    mean, variance = v("bn/mean", 6), v("bn/variance", 6, positive=True)
    return lambda x: tf.nn.batch_normalization(
        tf.matmul(x, kernel) + bias, mean, variance, beta, gamma, 1e-3
    )


def _dense(transposed: bool = False) -> Any:
    def make(v: Variables) -> Function:
        kernel, bias = v("d/kernel", *((6, 4) if transposed else (4, 6))), v("d/bias", 6)
        return lambda x: tf.matmul(x, kernel, transpose_b=transposed) + bias

    return make


def _dense_of_images(v: Variables) -> Function:
    kernel = v("d/kernel", 4, 6)
    return lambda x: tf.tensordot(x, kernel, [[3], [0]])


def _flattened(v: Variables) -> Function:
    kernel = v("d/kernel", 256, 6)
    return lambda x: tf.matmul(tf.reshape(x, (tf.shape(x)[0], -1)), kernel)


def _flattened_again(v: Variables) -> Function:
    kernel = v("d/kernel", 256, 6)
    return lambda x: tf.matmul(tf.reshape(x, (-1, 256)), kernel)


def _of(function: Function) -> Any:
    """A function without variables, after a convolution that makes it worth a model."""

    def make(v: Variables) -> Function:
        kernel = v("conv/kernel", 1, 1, 4, 4)
        return lambda x: function(tf.nn.conv2d(x, kernel, 1, "SAME"))

    return make


def _prelu(v: Variables) -> Function:
    alpha, kernel = v("alpha", 4), v("conv/kernel", 1, 1, 4, 4)

    def run(x: Any) -> Any:
        x = tf.nn.conv2d(x, kernel, 1, "SAME")
        return tf.nn.relu(x) - alpha * tf.nn.relu(-x)

    return run


def _shared(v: Variables) -> Function:
    kernel = v("conv/kernel", 3, 3, 4, 4)
    return lambda x: tf.nn.conv2d(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")), kernel, 1, "SAME")


def _squeeze_excite(v: Variables) -> Function:
    down, up = v("down", 4, 2), v("up", 2, 4)

    def run(x: Any) -> Any:
        gate = tf.matmul(tf.nn.relu(tf.matmul(tf.reduce_mean(x, (1, 2)), down)), up)
        return x * tf.sigmoid(gate)[:, None, None, :]

    return run


def _shuffled(x: Any) -> Any:
    """The channels of two groups in turn, as ShuffleNet has them."""
    sides = tf.shape(x)
    x = tf.reshape(x, (sides[0], sides[1], sides[2], 2, 2))
    return tf.reshape(tf.transpose(x, (0, 1, 2, 4, 3)), (sides[0], sides[1], sides[2], 4))


def _attention(x: Any) -> Any:
    rows = tf.reshape(x, (tf.shape(x)[0], 64, 4))
    return tf.matmul(tf.nn.softmax(tf.matmul(rows, rows, transpose_b=True)), rows)


CASES: dict[str, Case] = {
    "convolution": Case(_conv(), layers=("Conv2D",)),
    "convolution strided": Case(_conv(2), layers=("Conv2D",)),
    "convolution valid": Case(_conv(padding="VALID"), layers=("Conv2D",)),
    "convolution dilated": Case(_conv(dilation=2), layers=("Conv2D",)),
    "convolution grouped": Case(_conv(groups=2), layers=("Conv2D",)),
    "convolution explicit": Case(
        _conv(2, padding=((0, 0), (0, 1), (1, 2), (0, 0))), layers=("Conv2D",)
    ),
    "convolution, bias in front": Case(_conv_added, layers=("Conv2D",)),
    "convolution called": Case(_conv_called(False), layers=("Conv2D",)),
    "convolution called, and a norm": Case(
        _conv_called(True), layers=("Conv2D", "BatchNormalization")
    ),
    "convolution 1D": Case(_conv_1d, (8, 4)),
    "convolution 3D": Case(_conv_3d, (4, 4, 4, 4), ("Conv3D",)),
    "convolution through the batch": Case(_through_batch, layers=("Conv2D",)),
    "convolution through the batch, unevenly": Case(
        _through_batch_unevenly, (7, 7, 4), ("ZeroPadding2D", "Conv2D")
    ),
    "depthwise": Case(_depthwise(), layers=("DepthwiseConv2D",)),
    "depthwise strided": Case(_depthwise(2), layers=("DepthwiseConv2D",)),
    "depthwise dilated": Case(_depthwise(1, 2), layers=("DepthwiseConv2D",)),
    "transposed": Case(_transposed(16, "SAME", False), layers=("Conv2DTranspose",)),
    "transposed, odd": Case(_transposed(15, "SAME", False)),
    "transposed, valid": Case(_transposed(17, "VALID", False), layers=("Conv2DTranspose",)),
    "transposed, valid, larger": Case(_transposed(18, "VALID", False)),
    "transposed, computed": Case(_transposed(0, "SAME", True), layers=("Conv2DTranspose",)),
    "layer norm by hand": Case(_layer_norm("by hand"), layers=("LayerNormalization",)),
    "layer norm, tf.nn": Case(_layer_norm("tf.nn"), layers=("LayerNormalization",)),
    "layer norm, keras 3": Case(_layer_norm("keras 3"), layers=("LayerNormalization",)),
    "layer norm, from the front": Case(_layer_norm("tf.nn", 3), layers=("LayerNormalization",)),
    # Of matrices it would be one; of images it is over their rows.
    "norm over rows": Case(_layer_norm("tf.nn", 1)),
    "layer norm, alone": Case(_layer_norm("alone"), layers=("LayerNormalization",)),
    "embedding": Case(_embedding, layers=("Embedding",)),
    "padded by hand": Case(_padded_by_hand, layers=("Conv2D",)),
    "reflected": Case(_reflected, layers=("Conv2D",)),
    "dense": Case(_dense(), (4,), ("Dense",)),
    "dense transposed": Case(_dense(True), (4,), ("Dense",)),
    "dense of images": Case(_dense_of_images, layers=("Dense",)),
    "dense, flattened": Case(_flattened, layers=("Dense",)),
    "dense, flattened with -1": Case(_flattened_again, layers=("Dense",)),
    "dense and norm": Case(_dense_norm, (4,), ("Dense", "BatchNormalization")),
    **{
        f"norm {form}": Case(_norm(form), layers=("Conv2D", "BatchNormalization"))
        for form in (
            "fused",
            "tf.nn",
            "keras 3",
            "as in the paper",
            "divided",
            "divided at once",
            "mean last",
            "mean alone",
            "without gamma",
            "without beta",
            "power",
        )
    },
    "norm twice": Case(_norm_twice, layers=("BatchNormalization",)),
    "shared": Case(_shared, layers=("Conv2D",)),
    "squeeze and excite": Case(_squeeze_excite, layers=("Dense",)),
    "prelu": Case(_prelu),
    **{
        name: Case(_of(function))
        for name, function in {
            "relu": tf.nn.relu,
            "relu6": tf.nn.relu6,
            "relu6 by hand": lambda x: tf.minimum(tf.maximum(x, 0.0), 6.0),
            "clip": lambda x: tf.clip_by_value(x, -0.5, 0.5),
            "leaky relu": lambda x: tf.nn.leaky_relu(x, 0.3),
            "leaky relu by hand": lambda x: tf.maximum(x, 0.3 * x),
            "swish": lambda x: x * tf.sigmoid(x),
            "swish, turned": lambda x: tf.sigmoid(x) * x,
            "tf.nn.swish": tf.nn.swish,
            "hard swish": lambda x: x * tf.nn.relu6(x + 3.0) / 6.0,
            "hard swish, multiplied": lambda x: x * (tf.nn.relu6(x + 3.0) * (1 / 6)),
            "hard sigmoid": lambda x: tf.nn.relu6(x + 3.0) / 6.0,
            "gelu": tf.nn.gelu,
            "gelu, tanh": lambda x: tf.nn.gelu(x, approximate=True),
            "mish": lambda x: x * tf.tanh(tf.nn.softplus(x)),
            "elu": tf.nn.elu,
            "selu": tf.nn.selu,
            "softsign": tf.nn.softsign,
            "log softmax": tf.nn.log_softmax,
            "softmax": tf.nn.softmax,
            "softmax, other axis": lambda x: tf.nn.softmax(x, axis=1),
            "abs": tf.abs,
            "square": tf.square,
            "square root": lambda x: tf.sqrt(tf.abs(x)),
            "sin": tf.sin,
            "compared": lambda x: tf.where(x > 0.1, x, -x),
            "cast": lambda x: tf.cast(tf.cast(x * 8, tf.int32), tf.float32),
            "argmax": lambda x: tf.cast(tf.argmax(x, -1), tf.float32),
            "argmax, whole": lambda x: tf.argmax(x, -1),
            "argmax, keras 3": lambda x: keras.ops.argmax(x, -1),
            "argmin, int32": lambda x: tf.argmin(x, 2, output_type=tf.int32),
            "from a number": lambda x: 1.0 - x,
            "divided by itself": lambda x: x / (1.0 + tf.exp(-x)),
            "number by it": lambda x: 1.0 / (2.0 + tf.abs(x)),
            "power": lambda x: tf.pow(tf.abs(x) + 0.1, 1.5),
            "twice": lambda x: x + x,
            "squared by hand": lambda x: x * x,
            "sum": lambda x: tf.reduce_sum(x, (1, 2)),
            "mean": lambda x: tf.reduce_mean(x, (1, 2)),
            "mean, kept": lambda x: tf.reduce_mean(x, (1, 2), keepdims=True),
            "mean of one axis": lambda x: tf.reduce_mean(x, 1),
            "mean of channels": lambda x: tf.reduce_mean(x, -1, keepdims=True),
            "max": lambda x: tf.reduce_max(x, (1, 2)),
            "max pool": lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME"),
            "average pool": lambda x: tf.nn.avg_pool2d(x, 2, 2, "VALID"),
            "concat": lambda x: tf.concat([x, tf.nn.relu(x)], -1),
            "concat of rows": lambda x: tf.concat([x, tf.nn.relu(x)], 1),
            "concat of itself": lambda x: tf.concat([x, x], -1),
            "stack": lambda x: tf.stack([x, tf.nn.relu(x)], 1),
            "split": lambda x: tf.add(*tf.split(x, 2, -1)),
            "unstack": lambda x: tf.add_n(tf.unstack(x, axis=-1)),
            "sliced": lambda x: x[:, 1:7:2, ::2, 1:],
            "sliced, backwards": lambda x: x[:, ::-1],
            "tf.slice": lambda x: tf.slice(x, (0, 1, 1, 0), (-1, 4, 4, -1)),
            "index": lambda x: x[:, 0, 0],
            "new axis": lambda x: x[:, None],
            "ellipsis": lambda x: x[..., 0],
            "gather": lambda x: tf.gather(x, (3, 0, 1), axis=-1),
            "transpose": lambda x: tf.transpose(x, (0, 3, 1, 2)),
            "squeeze": lambda x: tf.squeeze(x[:, :1], 1),
            "pad": lambda x: tf.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0))),
            "pad channels": lambda x: tf.pad(x, ((0, 0), (0, 0), (0, 0), (0, 4))),
            "pad with another": lambda x: tf.pad(
                x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=-1.0
            ),
            "mirror": lambda x: tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC"),
            "resize": lambda x: tf.image.resize(x, (16, 16)),
            "resize, computed": lambda x: tf.image.resize(x, tf.shape(x)[1:3] * 2, "nearest"),
            "resize, odd": lambda x: tf.image.resize(x, (11, 5)),
            "resize, aligned": lambda x: tf.compat.v1.image.resize_bilinear(
                x, (15, 15), align_corners=True
            ),
            "depth to space": lambda x: tf.nn.depth_to_space(x, 2),
            "space to depth": lambda x: tf.nn.space_to_depth(x, 2),
            "tile": lambda x: tf.tile(x, (1, 2, 1, 1)),
            "broadcast": lambda x: x[:, :1] + tf.zeros_like(x),
            "reverse": lambda x: tf.reverse(x, (1,)),
            "l2 normalized": lambda x: tf.math.l2_normalize(x, -1),
            "shuffled": _shuffled,
            "attention": _attention,
            "lrn": tf.nn.local_response_normalization,
            "einsum": lambda x: tf.einsum("bhwc,bhwd->bcd", x, x),
            "top k": lambda x: tf.math.top_k(x, 2)[0],
            "cumulated": lambda x: tf.cumsum(x, 1),
            "dropout left out": lambda x: tf.identity(tf.stop_gradient(x)),
        }.items()
    },
}


# Those of which an operator stays as it is.
KEPT = {"embedding", "norm over rows", "reflected", "log softmax", "abs", "square root", "sin", "compared",
        "cast", "argmax", "argmax, whole", "argmax, keras 3", "argmin, int32", "number by it", "power", "gather", "mirror", "resize, computed", "resize, aligned",
        "depth to space", "space to depth", "tile", "broadcast", "reverse", "l2 normalized",
        "attention", "lrn", "einsum", "top k", "cumulated"}  # fmt: skip
# Those whose convolution, followed by them, becomes integers to the last operator.
INTEGERS = {"relu", "relu6", "relu6 by hand", "clip", "leaky relu", "leaky relu by hand", "swish",
            "swish, turned", "tf.nn.swish", "hard swish", "hard swish, multiplied", "hard sigmoid",
            "gelu", "gelu, tanh", "divided by itself", "from a number", "twice", "squared by hand",
            "square", "sum", "mean", "mean, kept", "mean of channels", "max", "concat", "stack",
            "split", "sliced", "tf.slice", "index", "new axis", "ellipsis", "transpose", "pad",
            "resize", "resize, odd", "prelu", "squeeze and excite", "shuffled",
            "convolution through the batch", "depthwise dilated", "dense of images", "abs", "gather",
            "depth to space", "space to depth", "tile", "mirror", "reflected", "resize, aligned",
            "resize, computed", "argmax, whole", "argmax, keras 3", "argmin, int32"}  # fmt: skip


def write(case: Case, path: Path, batch: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Save the function as a SavedModel.

    Returns:
      It, to compare with.
    """
    module = Variables()
    run = tf.function(
        case.make(module),
        input_signature=[tf.TensorSpec((batch, *case.shape), tf.float32, name="image")],
    )
    module.run = run
    tf.saved_model.save(module, str(path), signatures=run)
    return lambda x: run(x).numpy()
