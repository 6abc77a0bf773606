"""What TensorFlow computes on in this process."""

from __future__ import annotations

import functools

import tensorflow as tf


@functools.cache
def on_gpu() -> bool:
    """Whether TensorFlow has a GPU, and puts its operators there."""
    return bool(tf.config.list_physical_devices("GPU"))
