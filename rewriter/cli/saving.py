"""Keras models into files, whatever the format and whatever fails."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py

from rewriter import keras_compat
from rewriter.errors import RewriterError, short

_HDF5 = (".h5", ".hdf5")
MODELS = (".keras", *_HDF5, "")


def save(model: Any, path: Path, shown: Path) -> None:
    """Save a model.

    Args:
      model: of either Keras.
      path: where to.
      shown: what it will be called, for messages.

    Raises:
      RewriterError: it cannot be saved so.
      OSError: the file cannot be written.
    """
    try:
        if path.suffix in _HDF5:
            # HDF5 ends the process when it cannot write: in memory it can.
            content = io.BytesIO()
            with h5py.File(content, "w") as file:
                keras_compat.flavour_of(model).save_hdf5(model, file)
            path.write_bytes(content.getbuffer())
        else:
            model.save(path)
    except Exception as error:  # whatever Keras, HDF5, TensorFlow and the user's classes raise
        if isinstance(error, OSError) and error.errno is not None:
            raise  # as `replacing` says it
        raise RewriterError(f"{str(shown)!r} cannot be saved: {short(error)}") from error
