"""Files of every format that we read, damaged at random, and what reads them.

As a program: ``PYTHONPATH=tests/support python tests/support/mutants.py COUNT [SEED]`` reads so many and reports what went wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import io
import json
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tf_keras
from PIL import Image

import rewriter
from rewriter.checking import probe
from rewriter.cli import data
from rewriter.errors import RewriterError
from saved_models import X, build

LIMIT_S = 30.0  # for one file
_NUMBERS = (-1, 0, 2**31, 1e308, 255)
_VALUES: tuple[Any, ...] = (
    *_NUMBERS, None, True, "", "x", "os.system", [], ["x"], {}, {"class_name": ["x"], "config": 1},
    {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kind:
    """A format: a whole file, how it is read, and how often beside the others."""

    path: Path
    read: Callable[[Path], Any]
    weight: int
    inner: str = ""  # for a folder: the file in it that is damaged
    text: bool = False  # whether it is JSON


def kinds(folder: Path) -> dict[str, Kind]:
    """One file of each format, in ``folder``."""
    recipe = rewriter.Recipe(
        rewriter.PerTensorQuantizer(4),
        batch_norm_pipeline={"gamma": rewriter.FixedPoint(8), "layers": "bn"},
    )
    (folder / "r.json").write_text(recipe.to_json())
    np.save(folder / "d.npy", X)
    np.savez(folder / "d.npz", x=X, y=np.arange(len(X)))
    for suffix in ("png", "jpg", "bmp", "tif", "gif", "webp"):
        (folder / suffix).mkdir()
        Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(folder / suffix / f"1.{suffix}")
    shapes = {"image": (6, 6, 3)}
    found = {
        "recipe": Kind(folder / "r.json", rewriter.Recipe.load, 30, text=True),
        "npy": Kind(folder / "d.npy", lambda p: data.read(data.Source(p), shapes), 10),
        "npz": Kind(folder / "d.npz", lambda p: data.read(data.Source(p, labels="y"), shapes), 10),
    }
    for suffix in ("png", "jpg", "bmp", "tif", "gif", "webp"):
        found[suffix] = Kind(
            folder / suffix, lambda p: data.read(data.Source(p), shapes), 3, inner=f"1.{suffix}"
        )
    for k in (tf_keras, keras):
        qat = rewriter.rewrite(build(k), calibration_data=X)
        for suffix in (".keras", ".h5"):
            path = folder / f"{k.__name__}{suffix}"
            qat.save(path)
            found[path.name] = Kind(path, load, 6)
    qat.save(folder / "small.keras")
    rewriter.export_tflite(qat, folder / "m.tflite")

    def verify(path: Path) -> Any:
        return rewriter.verify(qat, path, X[:2], progress=False)

    found["tflite"] = Kind(folder / "m.tflite", verify, 12)
    model = rewriter.rewrite(build(tf_keras), calibration_data=X)
    model.save(folder / "saved")
    for inner in ("saved_model.pb", "keras_metadata.pb", "variables/variables.index"):
        found[inner] = Kind(folder / "saved", load, 1, inner=inner)
    return found


def load(path: Path) -> Any:
    """As the command line loads a model."""
    probe.check(path)
    return rewriter.load_model(path)


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes flipped, replaced, cut off, left out or doubled."""
    if not content:
        return content
    changed = bytearray(content)
    how = rng.integers(6)
    # Headers are short, and matter most.
    end = len(changed) if rng.random() < 0.5 else min(len(changed), 512)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(end))
        if how == 0:
            changed[place] ^= 1 << int(rng.integers(8))
        elif how == 1:
            changed[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif how == 2:
            changed[place : place + 4] = rng.bytes(4)
    if how == 3:
        return bytes(changed[: int(rng.integers(len(changed)))])
    place = int(rng.integers(len(changed)))
    length = int(rng.integers(1, 64))
    if how == 4:
        del changed[place : place + length]
    if how == 5:
        changed[place:place] = changed[place : place + length]
    return bytes(changed)


def damage_json(value: Any, rng: np.random.Generator) -> Any:
    """Another value in one place, or a name that is not there."""
    places = list(_places(value))
    path = places[int(rng.integers(len(places)))]
    other = _VALUES[int(rng.integers(len(_VALUES)))]
    if not path:
        return other
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if rng.random() < 0.2:
        del inner[path[-1]]
    else:
        inner[path[-1]] = other
    return value


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*path, key))


def mutant(kind: Kind, target: Path, rng: np.random.Generator) -> Path:
    """A damaged copy of a kind's file in the folder ``target``."""
    if kind.path.is_dir():
        path = target / kind.path.name
        shutil.copytree(kind.path, path)
        inner = path / kind.inner
        inner.write_bytes(damage(inner.read_bytes(), rng))
        return path
    path, content = target / kind.path.name, kind.path.read_bytes()
    structured = rng.random() < 0.5
    if structured and kind.text:
        content = json.dumps(damage_json(json.loads(content), rng)).encode()
    elif structured and path.suffix == ".keras":
        content = _other_entry(content, rng)
    elif structured and path.suffix == ".h5":
        path.write_bytes(content)
        with h5py.File(path, "a") as file:
            config = damage_json(json.loads(file.attrs["model_config"]), rng)
            file.attrs["model_config"] = json.dumps(config)
        return path
    else:
        content = damage(content, rng)
    path.write_bytes(content)
    return path


def _other_entry(content: bytes, rng: np.random.Generator) -> bytes:
    """A ``.keras`` file with another config, metadata or weights, and right checksums."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            part = old.read(name)
            if name == chosen and name.endswith(".json"):
                part = json.dumps(damage_json(json.loads(part), rng)).encode()
            elif name == chosen:
                part = damage(part, rng)
            new.writestr(name, part)
    return made.getvalue()


def try_all(count: int, seed: int, say: Callable[[str], Any] | None = None) -> list[str]:
    """What went wrong with ``count`` mutants: raw exceptions, files written, time beyond the limit.

    What crashes or hangs ends this process with a traceback.
    """
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "whole").mkdir()
        found = kinds(folder / "whole")
        shares = np.array([kind.weight for kind in found.values()], float)
        before = set(Path.cwd().iterdir())
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            chosen = list(found)[int(rng.choice(len(found), p=shares / shares.sum()))]
            target = folder / "mutant"
            target.mkdir()
            path = mutant(found[chosen], target, rng)
            problem = _tried(found[chosen], path)
            if problem is not None:
                problems.append(f"{chosen} {seed}:{number}: {problem}")
                if say is not None:
                    say(problems[-1])
            shutil.rmtree(target)
            if number % 50 == 0:
                keras.backend.clear_session()
                tf_keras.backend.clear_session()
        problems += [f"written: {path}" for path in set(Path.cwd().iterdir()) - before]
    return problems


def _tried(kind: Kind, path: Path) -> str | None:
    faulthandler.dump_traceback_later(3 * LIMIT_S, exit=True)
    start = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            kind.read(path)
    except RewriterError as error:
        if "\n" in str(error).strip():
            return f"several lines: {str(error)[:200]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    taken = time.monotonic() - start
    return f"{taken:.0f} s" if taken > LIMIT_S else None


if __name__ == "__main__":
    arguments = [int(text) for text in sys.argv[1:]] or [10_000]
    wrong = try_all(arguments[0], *(arguments[1:] or [0]), say=print)
    print(f"{arguments[0]} files: {len(wrong)} went wrong")
    sys.exit(bool(wrong))
