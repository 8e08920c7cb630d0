"""Rewrite saved networks so that their bytes depend on the network alone, not on what the process did before.

TensorFlow numbers its functions over the life of a process, and Keras writes dates and memory addresses. Both would
give equal networks other digests after a resumed run or within a sweep, and make downstream artifacts stale.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TRACED = re.compile(r"(?<=_)\d+$")  # the number that TensorFlow ends the name of a traced function with
_TABLE = re.compile(r"key_value_init\d+")  # numbered likewise
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
        traced = (_TRACED.search(function.signature.name) for function in library.function)
        numbers = sorted((int(found[0]), found.string) for found in traced if found)
        order = {name: place for place, (_, name) in enumerate(numbers)}
        renamed = {name: _TRACED.sub(str(place), name) for name, place in order.items()}
        functions = sorted(library.function, key=lambda function: order.get(function.signature.name, len(order)))
        del library.function[:]
        library.function.extend(functions)
        tables: dict[str, str] = {}
        for attributes in _attributes(meta_graph.graph_def):
            if "shared_name" in attributes and attributes["shared_name"].s.isdigit():  # a lookup table's number
                number = attributes["shared_name"].s.decode()
                attributes["shared_name"].s = tables.setdefault(number, f"table_{len(tables)}").encode()
            if "_user_specified_name" in attributes and attributes["_user_specified_name"].s.isdigit():
                del attributes["_user_specified_name"]  # the number of a captured variable
            for value in attributes.values():
                for called in (value.func, *value.list.func):
                    if called.name in renamed:  # An assignment would turn any attribute into a function.
                        called.name = renamed[called.name]
        for function in library.function:
            _rename(function, renamed.get(function.signature.name, function.signature.name), tables)
        for gradient in library.gradient:
            gradient.function_name = renamed.get(gradient.function_name, gradient.function_name)
            gradient.gradient_func = renamed.get(gradient.gradient_func, gradient.gradient_func)
        _rename_in_objects(meta_graph.object_graph_def, renamed)
    _name_tables_by_content(saved)
    file.write_bytes(saved.SerializeToString(deterministic=True))


def _name_tables_by_content(saved: Any) -> None:
    """Add a digest of the network to the names of its lookup tables: a process shares tables of the same name."""
    content = hashlib.sha256(saved.SerializeToString(deterministic=True)).hexdigest()[:16]
    for meta_graph in saved.meta_graphs:
        for attributes in _attributes(meta_graph.graph_def):
            if "shared_name" in attributes and attributes["shared_name"].s.startswith(b"table_"):
                attributes["shared_name"].s += f"_{content}".encode()


def _rename(function: Any, name: str, tables: dict[str, str]) -> None:
    """Rename a function, and in it what is named after it (a loop's arguments) or after the number of a lookup table."""
    old_name, function.signature.name = function.signature.name, name

    def renamed(text: str) -> str:
        text = text.replace(old_name, name)
        return _TABLE.sub(lambda found: tables.setdefault(found[0], f"key_value_init{len(tables)}"), text)

    if not any(old_name in argument.name for argument in function.signature.input_arg) and not any(
        _TABLE.search(node.name) for node in function.node_def
    ):
        return
    for argument in function.signature.input_arg:
        argument.name = renamed(argument.name)
    for node in function.node_def:
        node.name = renamed(node.name)
        node.input[:] = [renamed(given) for given in node.input]
    function.signature.control_output[:] = [renamed(output) for output in function.signature.control_output]
    for results in (function.ret, function.control_ret):
        pairs = {renamed(key): renamed(value) for key, value in results.items()}
        results.clear()
        results.update(pairs)


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
