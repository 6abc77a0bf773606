"""A page in headless Chromium: what it asks for, what it complains of, and how wide it is."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--allow-file-access-from-files",
    "--virtual-time-budget=10000",
]
# The page is in a frame: a window cannot be as narrow as a telephone.
_FRAME = """<!DOCTYPE html><body style="margin:0"><p id="found"></p>
<iframe id="frame" src="{page}" width="{width}" height="900" style="border:0"></iframe>
<script>
window.onload = () => {{
  const page = document.getElementById("frame").contentDocument;
  document.getElementById("found").textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    headings: [...page.querySelectorAll("h2")].map(h => h.textContent),
    text: page.body.innerText,
    scripts: page.scripts.length,
    requests: page.defaultView.performance.getEntriesByType("resource").map(e => e.name),
    drawings: [...page.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().width > 9).length,
  }});
}};
</script></body>"""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a browser found.

    Attributes:
      width: how wide the page is, in pixels: more than the frame if it scrolls.
      headings, text: of the page.
      scripts, drawings: how many script elements, and visible SVG drawings, it has.
      console: what was written to the console.
      requests: the addresses that the page asked for, its own left out.
    """

    width: int
    headings: list[str]
    text: str
    scripts: int
    drawings: int
    console: list[str]
    requests: list[str]


def look(page: Path, width: int, folder: Path) -> Seen:
    """Open a page in a frame; the test is skipped where there is no Chromium."""
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    frame = folder / f"frame_{width}.html"
    frame.write_text(_FRAME.format(page=page.as_uri(), width=width))
    done = subprocess.run(
        [program, *_FLAGS, f"--user-data-dir={folder / f'profile_{width}'}", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<p id="found">(.*?)</p>', done.stdout, re.S)
    if found is None or not found.group(1):
        raise AssertionError(f"the page did not load: {done.stderr[-2000:]}")

    return Seen(
        **json.loads(html.unescape(found.group(1))),
        console=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
    )
