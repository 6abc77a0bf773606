"""What the tests of convolutions differentiate."""

from __future__ import annotations

import tensorflow as tf


def gradients(convolve, x, kernel, *arguments):
    """The output, and the gradients for the input and the kernel of a sum with uneven weights."""
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = convolve(x, kernel, *arguments)
        weights = tf.cast(tf.reshape(tf.range(tf.size(y)) % 7 - 3, tf.shape(y)), y.dtype)
        loss = tf.reduce_sum(y * weights)
    return [y, *tape.gradient(loss, [x, kernel])]


def second_gradients(convolve, x, kernel, *arguments):
    """Those of the sum of the squares of the first ones."""
    with tf.GradientTape() as outer:
        outer.watch([x, kernel])
        with tf.GradientTape() as inner:
            inner.watch([x, kernel])
            loss = tf.reduce_sum(tf.tanh(convolve(x, kernel, *arguments)))
        squares = [tf.reduce_sum(g**2) for g in inner.gradient(loss, [x, kernel])]
    return outer.gradient(squares, [x, kernel])
