"""Rewrite saved networks so that their bytes depend on the network alone, not on what the process did before.

TensorFlow numbers its functions over the life of a process, and Keras writes dates and memory addresses. Both would
give equal networks other digests after a resumed run or within a sweep, and make downstream artifacts stale.
"""

from __future__ import annotations

import copy
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TRACED = re.compile(r"(?<=_)\d+$")  # the number that TensorFlow ends the name of a traced function with
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can store
DATE_SAVED = "1980-01-01@00:00:00"


def canonical_saved_model(file: Path) -> None:
    """Rewrite a `saved_model.pb` with functions numbered from 0, in the order in which they were traced.

    Args:
        file: the `saved_model.pb`; it is replaced.
    """
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString(file.read_bytes())
    for meta_graph in saved.meta_graphs:
        library = meta_graph.graph_def.library
        names = [function.signature.name for function in library.function if _TRACED.search(function.signature.name)]
        names.sort(key=lambda name: (int(_TRACED.search(name)[0]), name))
        renamed = {name: _TRACED.sub(str(number), name) for number, name in enumerate(names)}
        for attributes in _attributes(meta_graph.graph_def):
            if "_user_specified_name" in attributes and attributes["_user_specified_name"].s.isdigit():
                del attributes["_user_specified_name"]  # the number of a captured variable
            for value in attributes.values():
                for called in (value.func, *value.list.func):
                    if called.name in renamed:  # An assignment would turn any attribute into a function.
                        called.name = renamed[called.name]
        for function in library.function:
            function.signature.name = renamed.get(function.signature.name, function.signature.name)
        functions = sorted(library.function, key=lambda function: str(function.signature.name))
        del library.function[:]
        library.function.extend(functions)
        for gradient in library.gradient:
            gradient.function_name = renamed.get(gradient.function_name, gradient.function_name)
            gradient.gradient_func = renamed.get(gradient.gradient_func, gradient.gradient_func)
        _rename_in_objects(meta_graph.object_graph_def, renamed)
    file.write_bytes(saved.SerializeToString(deterministic=True))


def _attributes(graph: Any) -> Iterator[Any]:
    """The attribute maps of a graph's nodes, of its functions, and of their nodes and arguments."""
    yield from (node.attr for node in graph.node)
    for function in graph.library.function:
        yield function.attr
        yield from (node.attr for node in function.node_def)
        yield from (argument.attr for argument in function.arg_attr.values())


def _rename_in_objects(objects: Any, renamed: dict[str, str]) -> None:
    for node in objects.nodes:
        if names := node.function.concrete_functions:
            names[:] = [renamed.get(name, name) for name in names]
        bare = node.bare_concrete_function
        if bare.concrete_function_name in renamed:
            bare.concrete_function_name = renamed[bare.concrete_function_name]
    signatures = {name: copy.deepcopy(signature) for name, signature in objects.concrete_functions.items()}
    objects.concrete_functions.clear()
    for name, signature in signatures.items():
        objects.concrete_functions[renamed.get(name, name)].CopyFrom(signature)


def canonical_keras(file: Path) -> None:
    """Rewrite a `.keras` file without dates, and with shared objects numbered from 0.

    Args:
        file: the `.keras` file; it is replaced.
    """
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    metadata = json.loads(members["metadata.json"])
    members["metadata.json"] = json.dumps({**metadata, "date_saved": DATE_SAVED}).encode()
    numbers: dict[int, int] = {}

    def numbered(fields: dict[str, Any]) -> dict[str, Any]:
        if isinstance(shared := fields.get("shared_object_id"), int):  # a memory address
            fields["shared_object_id"] = numbers.setdefault(shared, len(numbers))
        return fields

    members["config.json"] = json.dumps(json.loads(members["config.json"], object_hook=numbered)).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, contents in members.items():
            archive.writestr(zipfile.ZipInfo(name, ZIP_DATE), contents)
