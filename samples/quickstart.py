"""The whole way in Python: a trained model in, a verified integer-only file out.

    python samples/quickstart.py model.tflite

Takes about a minute.
"""

from __future__ import annotations

import sys

import tf_keras

import rewriter
from rewriter.cli import demo  # its model and its data


def main(path: str) -> None:
    data = demo.digits()
    model = rewriter.load_model(demo.MODEL)
    print(rewriter.plan(model))

    qat = rewriter.rewrite(model, calibration_data=data.x_train[:256])
    qat.compile(tf_keras.optimizers.SGD(0.0005), "sparse_categorical_crossentropy", ["accuracy"])
    qat.fit(data.x_train, data.y_train, epochs=2, verbose=2)

    print(rewriter.export_tflite(qat, path))
    print(rewriter.verify(qat, path, data.x_test))

    twin = rewriter.fold(qat)
    right = twin.predict(data.x_test, verbose=0).argmax(-1) == data.y_test
    print(f"accuracy on the device: {100 * right.mean():.2f} %")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "model.tflite")
