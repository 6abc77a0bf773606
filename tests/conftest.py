"""What all tests share."""

from __future__ import annotations

import datetime
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# oneDNN writes past its workspace in the gradient of strided 1x1 convolutions with few channels
# (https://github.com/uxlfoundation/oneDNN/issues/6035): the stock mini_xception crashes in training
# on a processor with AVX-512. To run the tests of kernels and of training with it, set the variable:
# TF_ENABLE_ONEDNN_OPTS=1 pytest -m kernels
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

_PARTS = {"wide": 16, "slow": 5}  # of what is marked so one part runs, another one every day
_KERNELS = ("kernels", "layers", "training")  # folders
_KERAS = re.compile(r"(?<=[\[-])(tf_)?keras(?=[\]-])")  # in the parameters of a test


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    everything = os.environ.get("REWRITER_WIDE", "0") != "0" or any(
        "::" in argument for argument in config.args
    )
    today = datetime.date.today().toordinal()
    names = {item.nodeid for item in items}
    kept, left = [], []
    for item in items:
        if item.path.parent.name in _KERNELS:
            item.add_marker(pytest.mark.kernels)
        (kept if everything or _todays(item, names, today) else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def _todays(item: pytest.Item, names: set[str], today: int) -> bool:
    """Whether a test is of the part that runs today, which depends on its name alone.

    Of a test that runs with both Kerases, one a day: half of the tests with each.
    """
    nodeid = item.nodeid
    parts = max((n for name, n in _PARTS.items() if item.get_closest_marker(name)), default=1)
    if parts > 1:
        return zlib.crc32(nodeid.encode()) % parts == today % parts
    found = _KERAS.search(nodeid)
    if found is None:
        return True
    other = "keras" if found[1] else "tf_keras"
    if nodeid[: found.start()] + other + nodeid[found.end() :] not in names:
        return True
    half = zlib.crc32(_KERAS.sub("", nodeid).encode()) // 16 + today
    return (half % 2 == 0) == (found[1] is None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and data sets; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("REWRITER_SHARED", default))
    if not (folder / "models").is_dir():
        pytest.skip(
            f"needs the real models and data sets, which are not in {folder}: "
            "set REWRITER_SHARED to the folder that holds them"
        )
    return folder


@pytest.fixture(params=["plain", "fast"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernels, by both implementations, whichever the environment asks for."""
    from rewriter import kernels

    with kernels.using(request.param):
        yield request.param


@pytest.fixture
def fast_kernels() -> None:
    """For tests of graphs: what only the fast kernels put there."""
    from rewriter import kernels

    if kernels.current() != "fast":
        pytest.skip("what the fast kernels put into a graph; these are the plain ones")


@pytest.fixture(params=["inside", "outside"])
def arrangement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where fused normalizations stand: in the condition, or outside of it as for oneDNN."""
    from rewriter.kernels.fast import machine

    monkeypatch.setattr(machine, "onednn", lambda: request.param == "outside")
    return request.param
