"""Every operation of ``test_ops`` by the recipe ``int16x8``: as LiteRT in every bit, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import test_ops

import rewriter
from checks import KERASES, both, call, randomise, samples, structured
from rewriter.errors import ExportError

# What a case becomes that LiteRT has no operator of 16 bits for, or none that is right.
REFUSED = {
    "ELU": "ELU: LiteRT has none",
    "elu": "ELU: LiteRT has none",
    "exp": "EXP: LiteRT has none",
    "log": "LOG: LiteRT has none",
    "unit": "L2_NORMALIZATION: LiteRT has none",
    "UnitNormalization": "L2_NORMALIZATION: LiteRT has none",
    "argm": "ARG_(MAX|MIN): LiteRT has none",
    "rsqrt": "reciprocal roots of 16 bits|divides tensors of 16 bits",
    "divide_": "divides tensors of 16 bits",
    "patches": "SPACE_TO_DEPTH: LiteRT has none",
    "depth": "(DEPTH_TO_SPACE|SPACE_TO_DEPTH): LiteRT has none",
    "resize": "resizes 6 pixels to 9 in 16 bits|resizes 8 pixels to 13 in 16 bits",
    "Resizing": "resizes .* pixels to .* in 16 bits",
}


@pytest.mark.wide
@both
@pytest.mark.parametrize("name", test_ops.CASES)
def test_operation(name: str, flavour: str, tmp_path: Path) -> None:
    if test_ops.CASES[name].only not in (None, flavour):
        pytest.skip("the other Keras only")
    rng = np.random.default_rng(0)
    model = test_ops.build(KERASES[flavour], [name])
    randomise(model, rng, samples(model, rng, 16), dead=False)
    qat = rewriter.rewrite(model, "int16x8")
    data = samples(qat, rng, 16)
    rewriter.calibrate(qat, structured(qat, data), progress=False)
    path = tmp_path / "m.tflite"
    try:
        rewriter.export_tflite(qat, path)
    except ExportError as error:
        reasons = [reason for part, reason in REFUSED.items() if part in name]
        assert reasons, error
        with pytest.raises(ExportError, match="|".join(reasons)):
            raise
        assert not path.exists()
        return
    found = rewriter.verify(qat, path, structured(qat, data), progress=False)
    assert found.parts_at is None, str(found)
    assert not found.comparison.skipped and not found.comparison.differences
    for row in (*found.comparison.operator_by_operator, *found.comparison.end_to_end):
        assert row.identical == 1.0, str(found)
    twin = call(rewriter.fold(qat), data)
    for wanted, given in zip(call(model, data), twin, strict=True):
        noise = float(np.mean((wanted.astype(np.float64) - given) ** 2))
        signal = float(np.mean(wanted.astype(np.float64) ** 2))
        assert signal > 1000 * noise  # 30 dB: the kernels of 8 bits
