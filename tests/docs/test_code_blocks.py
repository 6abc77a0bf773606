"""Every block of code in the README and the documentation runs, page by page, from top to bottom."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import documentation
import rewriter
import rewriter_command

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FIRST = ("README.md", "index.md")  # which are always run
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What is no command of ours: installing and tests are what continuous integration does itself.
_ELSEWHERE = re.compile(r"python3\.11 -m venv|pip install|\.ci/|python benchmarks/|mkdocs ")


# Of each notebook: what training with quantization emulated must be better than, and its name.
SHARES = {
    "four_bits": ("w4.tflite", "w4_tuned.tflite"),
    "frozen_backbone": ("calibrated", "fine-tuned"),
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the page's blocks."""
    return [(match[1], match[2]) for match in _BLOCK.finditer(page.read_text())]


def runnable(page: Path) -> bool:
    return any(language in ("python", "sh") for language, _ in blocks(page))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return documentation.files(tmp_path_factory.mktemp("documentation"))


@pytest.fixture
def folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own with the files that pages speak of."""
    there = tmp_path / "page"
    shutil.copytree(files, there)
    monkeypatch.chdir(there)
    monkeypatch.syspath_prepend(str(there))
    yield there
    sys.modules.pop(documentation.MODULE, None)


def _named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=_named(p), marks=[] if p.name in FIRST else [pytest.mark.slow])
        for p in PAGES
        if runnable(p)
    ],
)
def test_runs(page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = documentation.names()
    for number, (language, text) in enumerate(blocks(page)):
        place = f"{page.name}, block {number + 1}"
        if language == "python":
            exec(compile(text, place, "exec"), values)
        if language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                _run(line, place, capsys)


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs").rglob("*.ipynb")), ids=lambda page: page.stem
)
def test_notebooks(page: Path, folder: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="plots: pip install -e '.[samples]'")
    matplotlib.use("Agg")
    values = {"__name__": "notebook"}
    for number, cell in enumerate(json.loads(page.read_text())["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{page.name}, cell {number}", "exec"), values)
            assert cell["outputs"] or number < 3, f"{page.name}: cell {number} has not been run"
    calibrated, tuned = SHARES[page.stem]
    assert values["shares"][tuned] > values["shares"][calibrated]


def _run(line: str, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line, comments=True)
    if not words or _ELSEWHERE.search(line):
        return
    assert words[0] == "rewriter", f"{place}: {line}"
    if words[1:] == ["demo"]:
        return  # has tests of its own
    capsys.readouterr()
    try:
        code = rewriter_command.main(words[1:])
    except SystemExit as end:  # as --version ends
        code = end.code
    assert code in (0, None), f"{place}: {line}\n{capsys.readouterr().err}"


def test_the_pages_name_files_that_are_there() -> None:
    missing = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not missing


def test_every_error_has_its_entry() -> None:
    """A class of errors without a heading and its messages in docs/errors.md."""
    text = (ROOT / "docs" / "errors.md").read_text()
    names = [
        name
        for name, value in vars(rewriter.errors).items()
        if isinstance(value, type) and issubclass(value, (rewriter.RewriterError, UserWarning))
    ]
    assert len(names) > 8
    assert [
        n for n in names if f"## {n}\n" not in text or f"{{{{messages {n}}}}}" not in text
    ] == []


def test_every_command_has_its_entry() -> None:
    from rewriter.cli import commands

    text = (ROOT / "docs" / "command-line.md").read_text()
    assert [name for name in commands.COMMANDS if f"`rewriter {name}" not in text] == []
