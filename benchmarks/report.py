"""Tables in Markdown, and a file of results whose sections the benchmarks replace one by one."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_PACKAGES = (
    "tensorflow",
    "tf-keras",
    "keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
    "numpy",
)
_KEEPING = ("--files", "--json")  # options that change no result, with a path
_TITLE = "# Results of the benchmarks"
_HEADING = re.compile(r"^## (.*)$", re.MULTILINE)


def machine() -> str:
    """The processor, its cores, and the versions that were measured: two lines."""
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return (
        f"Machine: {_processor()}, {os.cpu_count()} cores, {platform.system()}.\n"
        f"Versions: Python {platform.python_version()}, {', '.join(versions)}."
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.*)$", info.read_text(), re.M) if info.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def command(argv: Sequence[str] | None = None) -> str:
    """How this program was started, from the root of the repository; without files to keep."""
    program, *rest = sys.argv if argv is None else argv
    kept = [
        word
        for before, word in zip(["", *rest], rest, strict=False)
        if word not in _KEEPING and before not in _KEEPING
    ]
    # Kernels that someone asked for are part of what was measured.
    asked = [f"{name}={os.environ[name]}" for name in ("REWRITER_KERNELS",) if name in os.environ]
    return shlex.join([*asked, "python", f"benchmarks/{Path(program).name}", *kept])


def load() -> str:
    """How busy the machine is, and whose kernels TensorFlow takes there."""
    # Not before a benchmark has set TensorFlow's environment.
    from rewriter import kernels
    from rewriter.kernels.fast import machine

    one, five, _ = os.getloadavg()
    used = "with oneDNN" if machine.onednn() else "without oneDNN"
    used += "" if kernels.current() == "fast" else f", {kernels.current()} kernels"
    return f"load average {one:.1f} (1 min), {five:.1f} (5 min), {used}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def replace_section(path: Path, title: str, text: str) -> None:
    """Put ``text`` under the heading ``## title`` of a file, in the place of what was there.

    A new section comes last. The head of the file, with machine and versions, is written anew.
    """
    parts = _HEADING.split(path.read_text())[1:] if path.exists() else []
    sections = dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))
    sections[title] = text.strip()
    blocks = [f"## {name}\n\n{content}" for name, content in sections.items()]
    path.write_text("\n\n".join([_TITLE, machine(), *blocks]) + "\n")
