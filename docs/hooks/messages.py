"""What the site takes from the code: the messages of errors, and links that leave the site."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "rewriter"
# What a message is an argument of, and whose class it then is in the end.
_INSTEAD = {"RefusedError": "UnsupportedModelError"}


def classes() -> dict[str, str]:
    """The classes of errors and warnings, and the first line of what each says of itself."""
    tree = ast.parse((PACKAGE / "errors.py").read_text())
    found = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {node.name: (ast.get_docstring(node) or "").split("\n")[0] for node in found}


def messages(name: str) -> list[str]:
    """Every message of one class that stands in the code, as a pattern with {names} in it."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = _message(node, name)
            if text is not None and len(text) > 12:
                found.add(text)
    return sorted(found)


def _message(node: ast.AST, name: str) -> str | None:
    if not isinstance(node, ast.Call) or not node.args:
        return None
    called = node.func.attr if isinstance(node.func, ast.Attribute) else None
    called = node.func.id if isinstance(node.func, ast.Name) else called
    first = node.args[0]
    if called == "warn":  # warnings.warn(message, RewriterWarning)
        others = [*node.args[1:], *(keyword.value for keyword in node.keywords)]
        called = next((o.id for o in others if isinstance(o, ast.Name)), None)
    called = _INSTEAD.get(called or "", called)
    return " ".join(_text(first).split()) if called == name else None


def _text(node: ast.AST) -> str:
    """A string in the code, with a place for each value that is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        called = {id(part.func) for part in ast.walk(node.value) if isinstance(part, ast.Call)}
        named = (part for part in ast.walk(node.value) if id(part) not in called)
        words = (getattr(part, "attr", None) or getattr(part, "id", None) for part in named)
        return "{" + next((word for word in words if word), "value") + "}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "{…}" if not isinstance(node, ast.Name) else ""


def _listed(match: re.Match[str]) -> str:
    found = messages(match[1])
    if not found:
        return ""
    lines = "\n".join(f"- `{text.replace('`', chr(39))}`" for text in found)
    return f'??? note "Its messages ({len(found)})"\n\n' + "\n".join(
        f"    {line}" for line in lines.splitlines()
    )


def on_page_markdown(markdown: str, **_: Any) -> str:
    """As mkdocs calls it for every page."""
    markdown = re.sub(r"\{\{messages (\w+)\}\}", _listed, markdown)
    # Files of the repository that are no page: their name alone.
    return re.sub(r"\[([^\]]+)\]\(\.\./(?!how-to)[^)]+\)", r"\1", markdown)
