"""Operations that resize images, in all their spellings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rewriter.reading.operations import Operation, resize

if TYPE_CHECKING:
    from rewriter.reading.graph import Call

Reader = Callable[["Call", Mapping[str, Any]], Operation | None]

_PLAIN_RESIZE = (
    "antialias",
    "preserve_aspect_ratio",
    "crop_to_aspect_ratio",
    "pad_to_aspect_ratio",
)


def _of_images(call: Call) -> bool:
    """Whether what is resized are images (batch, height, width, channels).

    TensorFlow resizes one image (height, width, channels), too, and takes the batch for its
    height then: an axis of 1 is put in front, and the unknown size of the batch stands behind it.
    """
    images = call.input_shapes[0]
    return len(call.shapes[0]) == 4 and (images[0] is None or None not in images)


def _resize(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    if any(arguments.get(key) for key in _PLAIN_RESIZE) or not _of_images(call):
        return None
    if arguments.get("data_format", "channels_last") not in (None, "channels_last"):
        return None
    method = str(arguments.get("method", "bilinear")).lower()
    return resize(arguments["x"], call.shapes[0][1:3], method)


def _resize_by_flags(method: str) -> Reader:
    """An operator of resizing, whose flags say where the pixels of an image lie."""

    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        if not _of_images(call):
            return None
        aligned, centred = (
            bool(arguments.get(key, False)) for key in ("align_corners", "half_pixel_centers")
        )
        return resize(arguments["x"], call.shapes[0][1:3], method, aligned, centred)

    return reader


def _resize_old(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    """``tf.compat.v1.image.resize``, whose methods are numbers."""
    method = arguments.get("method", 0)
    name = method if isinstance(method, str) else {0: "bilinear", 1: "nearest"}.get(int(method), "")
    if arguments.get("preserve_aspect_ratio"):
        return None
    return _resize_by_flags(name)(call, arguments)


READERS: dict[str, Reader] = {
    "resize": _resize,
    "resize_old": _resize_old,
    "resize_bilinear": _resize_by_flags("bilinear"),
    "resize_nearest": _resize_by_flags("nearest"),
}
