"""The file as C: compiled, it has the file's bytes, and the header says how tensors are stored."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

import builders
import commands
import rewriter
from builders import keras_of
from rewriter.errors import ExportError
from rewriter.litert import c_array
from rewriter.lowering.lower import lower

PROGRAM = """
#include <stdio.h>
#include "my-model.h"
int main(void) {
  if ((uintptr_t)my_model % 16) return 1;
  if (MY_MODEL_INPUT_0_SIZE != 432 || MY_MODEL_OUTPUT_0_SIZE != 5) return 2;
  fprintf(stderr, "%.9g %d\\n", MY_MODEL_INPUT_0_SCALE, MY_MODEL_INPUT_0_ZERO_POINT);
  return fwrite(my_model, 1, MY_MODEL_SIZE, stdout) != MY_MODEL_SIZE;
}
"""


@pytest.fixture(scope="module")
def qat():
    keras = builders.fresh(keras_of("keras"))
    built = rewriter.rewrite(builders.trained_residual(keras))
    return rewriter.calibrate(built, builders.residual_data(), progress=False)


def test_compiled_it_is_the_file(qat, tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    file, source = tmp_path / "m.tflite", tmp_path / "my-model.c"
    rewriter.export_tflite(qat, file, c_array=source)
    (tmp_path / "main.c").write_text(PROGRAM)
    options = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "program"]
    subprocess.run([compiler, *options, tmp_path / "main.c", source], check=True)
    done = subprocess.run([tmp_path / "program"], capture_output=True, check=True)
    assert done.stdout == file.read_bytes()
    scale, zero_point = done.stderr.split()
    expected = lower(qat).tensors["image"].quantization
    assert float(scale) == pytest.approx(expected.scale, rel=1e-7)
    assert int(zero_point) == expected.zero_point


def test_the_command(qat, tmp_path, capsys):
    qat.save(tmp_path / "qat.keras")
    options = ["-o", tmp_path / "m.tflite", "--c-array", tmp_path / "model.c"]
    commands.output_of(capsys, "export", tmp_path / "qat.keras", *options)
    assert "INPUT_0_ZERO_POINT" in (tmp_path / "model.h").read_text()


def test_another_suffix(qat, tmp_path):
    with pytest.raises(ExportError, match="is a .c file. Received: .*model.cc"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite", c_array=tmp_path / "model.cc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model", "my-model", "8bit", "", "größe"])
def test_names_are_those_of_c(name):
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", c_array.identifier(name))
