"""The rooms of the house: which may import which, and where what is private to others is touched."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

import rewriter

PACKAGE = Path(rewriter.__file__).parent
# From the top down: each may import those below it. Those of one row do not know each other.
ROOMS = (
    "cli",
    "report",
    "workflow",
    "export",
    "checking",
    "rewriting",
    "training",
    "lowering",
    "layers",
    "litert",
    "reading",
    "lifting",
    "quantization",
    "kernels",
    "keras_compat",
    "files",
    "program",
    "grid",
    "formulas",
    "errors",
)
# Where private names may be used.
PRIVATE_TENSORFLOW = ("kernels/fast/private.py", "keras_compat/private_tensorflow.py")
PRIVATE_KERAS = ("keras_compat/",)


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("rewriter", exclude_type_checking_imports=True)


def test_every_module_is_in_a_room() -> None:
    entries = {
        p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert entries - {"__init__", "__main__"} == set(ROOMS)


def test_imports_go_down(imports: grimp.ImportGraph) -> None:
    wrong = imports.find_illegal_dependencies_for_layers(layers=ROOMS, containers={"rewriter"})
    assert not {f"{found.importer} imports {found.imported}" for found in wrong}


def test_there_is_no_circle(imports: grimp.ImportGraph) -> None:
    """Not inside of a room either. (The package itself imports its public names.)"""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(imports.find_modules_directly_imported_by(module)):
                if other != "rewriter":
                    visit(other, (*path, module))
            done.add(module)

    for module in sorted(imports.modules - {"rewriter"}):
        visit(module, ())


def _sources(allowed: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(allowed):
            yield name, path.read_text()


def test_private_tensorflow_has_its_rooms() -> None:
    """In one module of the fast kernels, and in one that has nothing to do with kernels."""
    private = re.compile(
        r"tensorflow\.(?:python|core|compiler)\b|_get_control_flow_context|\b_c_op\b|pywrap"
    )
    code = re.compile(r"\s*(?:from|import)\s|.*\._")  # not names in strings
    found = {
        f"{name}: {line.strip()}"
        for name, text in _sources(PRIVATE_TENSORFLOW)
        for line in text.splitlines()
        if code.match(line) and private.search(line)
    }
    assert not found


def test_private_keras_has_its_room() -> None:
    names = (
        "nodes_by_depth inbound_nodes outbound_nodes flatten_layers keras_history keras_mask "
        "functional is_graph_network nested_inputs build_input_shape saved_model_inputs_spec "
        "build_shapes_dict"
    )
    private = re.compile(rf"(?:tf_)?keras\.src|[.\"'] *_(?:{'|'.join(names.split())})\b")
    found = [
        f"{name}: {match.group()}"
        for name, text in _sources(PRIVATE_KERAS)
        for match in private.finditer(text)
    ]
    assert not found


def _functions() -> Iterator[tuple[str, str, ast.FunctionDef]]:
    """Public functions, and public methods of public classes: module, class or "", node."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield module, "", node
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield module, node.name, inner


# What Keras or TFMOT call, and describe.
_HOOKS = {"build", "call", "get_config", "compute_output_shape", "compute_mask", "set_params"}


def test_public_functions_are_documented() -> None:
    """All but methods that another class here describes, and those that Keras calls."""
    described = {node.name for _, cls, node in _functions() if cls and ast.get_docstring(node)}
    # A Flavour annotates what its two subclasses must have.
    described |= {"batch_norm_classes", "stock_bases", "is_functional", "is_tensor"}
    missing = [
        f"{module}: {cls + '.' if cls else ''}{node.name}"
        for module, cls, node in _functions()
        if not ast.get_docstring(node)
        and not (cls and (node.name in described or node.name in _HOOKS))
        and not (cls and node.name.startswith("on_"))  # of a callback
    ]
    assert not missing


def test_errors_of_public_functions_are_documented() -> None:
    """What a function raises itself stands in its docstring."""
    missing = [
        f"{module}: {cls + '.' if cls else ''}{node.name}"
        for module, cls, node in _functions()
        if any(
            isinstance(n, ast.Raise)
            and n.exc is not None
            and "NotImplementedError" not in ast.unparse(n)
            for n in ast.walk(node)
        )
        and not re.search(r"[Rr]aise|Error", ast.get_docstring(node) or "Error")
    ]
    assert not missing


def test_every_room_says_what_may_be_done_in_it() -> None:
    short = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("__init__.py")
        if len((ast.get_docstring(ast.parse(path.read_text())) or "").split()) < 15
    ]
    assert not short


@pytest.mark.parametrize("name", sorted(set(rewriter.__all__) - {"layers"}))
def test_public_names_are_documented(name: str) -> None:
    """Every parameter is described, and what a function raises."""
    value = getattr(rewriter, name)
    text = inspect.getdoc(value) or ""
    assert len(text.split()) > 5, f"{name} has no docstring"
    if inspect.isclass(value) and issubclass(value, Exception):
        return
    signature = inspect.signature(value)
    parameters = [p for p in signature.parameters if p not in ("self", "args", "kwargs")]
    missing = [p for p in parameters if not re.search(rf"\b{p}\b", text)]
    assert not missing, f"{name} does not say what {missing} are"
    source = inspect.getsource(value)
    if inspect.isfunction(value) and re.search(r"^\s+raise \w*Error", source, re.M):
        assert "Raises:" in text, f"{name} does not say what it raises"


def test_files_are_short() -> None:
    """Or say why they are not."""
    long = [
        name
        for path in PACKAGE.rglob("*.py")
        if len((text := path.read_text()).splitlines()) > 300
        and "more than 300 lines" not in (ast.get_docstring(ast.parse(text)) or "")
        for name in [str(path.relative_to(PACKAGE))]
    ]
    assert not long


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by name alone; another one of the same name is an error, or is left out."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
