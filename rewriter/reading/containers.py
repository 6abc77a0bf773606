"""What the containers of models declare: sizes, places outside of them, functions run on loading.

All of it is read before any content is: a small file can declare contents that fill the memory.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

_SMALL = 64 << 20  # bytes: what any file may hold, however well it is packed
_RATIO = 100  # of what a larger one declares to what it takes; Keras itself does not compress


def _refuse_bomb(declared: int, taken: int) -> None:
    if declared > _SMALL and declared > _RATIO * taken:
        raise ValueError(
            f"it takes {taken:,} bytes and declares {declared:,} bytes of content, which no model "
            "of that size has"
        )


def check_zip(file: zipfile.ZipFile, size: int) -> None:
    """Raise ValueError unless an archive of ``size`` bytes declares contents that it can have.

    The weights of a ``.keras`` file are HDF5 themselves, and looked at likewise.
    """
    infos = file.infolist()
    _refuse_bomb(sum(info.file_size for info in infos), size)
    seen = set()
    for name in (info.filename for info in infos):
        parts = name.replace("\\", "/").split("/")
        outside = ".." in parts or os.path.isabs(name) or ":" in parts[0]
        if outside or name in seen:
            raise ValueError(f"it has an entry of the name {name!r}, which no .keras file has")
        seen.add(name)
    for info in infos:
        if info.filename.endswith(".h5"):
            with file.open(info) as stream:
                stored = info.compress_type == zipfile.ZIP_STORED
                content: Any = stream if stored else io.BytesIO(stream.read())
                if content.read(8) == b"\x89HDF\r\n\x1a\n":
                    content.seek(0)
                    with h5py.File(content, "r") as weights:
                        check_hdf5(weights, info.file_size)


def check_hdf5(file: h5py.File, size: int) -> None:
    """Raise ValueError unless an HDF5 file of ``size`` bytes holds all that it declares itself."""
    declared = 0
    for path, group, name in _members(file):
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"{path!r} in it lies in another file, {link.filename!r}")
        if isinstance(link, h5py.SoftLink):
            continue  # what it points to is looked at where it is
        item = group.get(name)
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise ValueError(f"the content of {path!r} in it lies in another file")
            declared += int(np.prod(item.shape or (0,), dtype=object)) * item.dtype.itemsize
    _refuse_bomb(declared, size)


def _members(file: h5py.File) -> Iterator[tuple[str, h5py.Group, str]]:
    """Every link in the file, once; groups may hold each other."""
    seen, stack = set(), [file]
    while stack:
        group = stack.pop()
        where = h5py.h5o.get_info(group.id)
        if (where.fileno, where.addr) in seen:
            continue
        seen.add((where.fileno, where.addr))
        for name in group:
            yield f"{group.name}/{name}".replace("//", "/"), group, name
            if isinstance(group.get(name, getlink=True), h5py.HardLink):
                item = group.get(name)
                if isinstance(item, h5py.Group):
                    stack.append(item)


# What the functions do that a SavedModel of tf_keras has run on loading: they make tables, fill
# them, and bring back what they held.
_TABLES = """Cast Const ExpandDims Fill HashTableV2 Identity IdentityN InitializeTableFromTextFileV2
    InitializeTableV2 LookupTableFindV2 LookupTableImportV2 LookupTableSizeV2
    MutableDenseHashTableV2 MutableHashTableOfTensorsV2 MutableHashTableV2 NoOp Pack
    PartitionedCall Placeholder PlaceholderWithDefault RestoreV2 Reshape Shape
    StatefulPartitionedCall StridedSlice"""
_ON_LOADING = frozenset(_TABLES.split())
_RUN = ("_create_resource", "_initialize", "_destroy_resource")


def run_on_loading(meta_graph: Any) -> str | None:
    """The first operation that loading a SavedModel would run, and no model needs; else None.

    Args:
      meta_graph: a MetaGraphDef with the objects of a model.
    """
    library = {f.signature.name: f for f in meta_graph.graph_def.library.function}
    todo = list(_started(meta_graph.object_graph_def.nodes))
    seen = set(todo)
    while todo:
        function = library.get(todo.pop())
        for node in function.node_def if function is not None else ():
            if node.op not in _ON_LOADING:
                return node.op
            for attribute in node.attr.values():
                called = [attribute.func, *attribute.list.func]
                new = {f.name for f in called if f.name} - seen
                seen |= new
                todo.extend(new)
    return None


def _started(nodes: Any) -> Iterator[str]:
    """The names of the functions with which loading begins."""
    for node in nodes:
        numbers = [child.node_id for child in node.children if child.local_name in _RUN]
        numbers += [saver.restore_function for saver in node.saveable_objects.values()]
        for number in numbers:
            if not 0 <= number < len(nodes):
                continue
            yield from nodes[number].function.concrete_functions
            if nodes[number].HasField("bare_concrete_function"):
                yield nodes[number].bare_concrete_function.concrete_function_name
