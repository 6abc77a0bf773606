"""Where one way to compute a gradient becomes faster than another, as measured.

Two cores of a processor with AVX-512, TensorFlow 2.21; ``docs/performance.md`` has the times. They
decide about time only: on either side of a threshold the sums are the same, in another order.
"""

from __future__ import annotations

# The gradient for the input of a convolution, by a convolution with the kernel turned around: with
# fewer input channels than this, which are its output channels, that is a slow one.
TURNED_CHANNELS = 8

# Both gradients of a convolution by patches, without oneDNN and with it: images of at most so many
# pixels, kernels of at least so many channels both ways. At 3x3 pixels, or with half the channels,
# patches take as long as what they replace, or longer.
PATCHED_PIXELS = 4
PATCHED_CHANNELS = 256

# The gradient of a depthwise kernel: for kernels up to this width oneDNN generates code, which is
# the faster; for wider ones TensorFlow's own kernel is, from so many channels on, which fill its
# vectors.
NARROW = 3
FILLED_CHANNELS = 16

# The gradient for the input of a depthwise convolution, by the kernel turned around: of narrow
# kernels for images of at least so many elements, of wide ones for more than so many pixels.
# Smaller ones take as long either way.
TURNED_ELEMENTS = 2**15
TURNED_PIXELS = 16
