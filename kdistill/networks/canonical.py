"""Rewrite saved networks so that their bytes depend only on the network, not on the process that saved it.

TensorFlow numbers its functions over the life of a process, Keras writes dates and memory addresses, and tf2onnx names
tensors in the order of Python sets. Otherwise equal networks would have different digests after a resumed run or within a
sweep, which would make downstream artifacts stale, and a repeated export would give another file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import zipfile
from itertools import count
from pathlib import Path
from typing import Any

_NUMBER = re.compile(r"_(\d+)$")  # the end of the name of a function that TensorFlow has traced
_TABLE_INITIALIZER = r"key_value_init\d+"  # the function that fills a lookup table
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip file can store
_DATE_SAVED = "1980-01-01@00:00:00"


def canonical_saved_model(file: Path) -> None:
    """Rewrite a `saved_model.pb` in place, with functions numbered from 0 in the order of their tracing."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString(file.read_bytes())
    (meta_graph,) = saved.meta_graphs
    library = meta_graph.graph_def.library
    numbers = {function.signature.name: _NUMBER.search(function.signature.name) for function in library.function}
    traced = sorted((int(number[1]), name) for name, number in numbers.items() if number)
    order = {name: place for place, (_, name) in enumerate(traced)}
    functions = sorted(library.function, key=lambda function: order.get(function.signature.name, len(order)))
    del library.function[:]
    library.function.extend(functions)
    renamer = _Renamer({name: _NUMBER.sub(f"_{place}", name) for name, place in order.items()})
    renamer.rename(meta_graph)
    # A process shares lookup tables of equal names, so tables of different networks need different names.
    content = hashlib.sha256(saved.SerializeToString(deterministic=True)).hexdigest()[:16]
    for attributes in renamer.table_attributes:
        attributes["shared_name"].s += f"_{content}".encode()
    file.write_bytes(saved.SerializeToString(deterministic=True))


class _Renamer:
    """Renames functions and lookup tables in all texts of a protocol buffer.

    Attributes:
        table_attributes: the attributes of each node that names a lookup table.
    """

    def __init__(self, function_names: dict[str, str]) -> None:
        names = [re.escape(name) for name in sorted(function_names, key=len, reverse=True)]
        self._pattern = re.compile("|".join([*(rf"{name}(?!\d)" for name in names), _TABLE_INITIALIZER]))
        self._names = dict(function_names)
        self._tables: dict[bytes, bytes] = {}
        self._initializers = count()
        self.table_attributes: list[Any] = []

    def rename(self, message: Any) -> None:
        """Rename in a message and in all messages inside it."""
        for field, value in message.ListFields():
            if isinstance(value, str):
                setattr(message, field.name, self._text(value))
            elif field.type == field.TYPE_STRING:
                value[:] = map(self._text, value)
            elif field.message_type and field.message_type.GetOptions().map_entry:
                self._map(value)
            elif field.message_type:
                for inner in [value] if hasattr(value, "ListFields") else value:
                    self.rename(inner)

    def _map(self, values: Any) -> None:
        items = [(key, copy.deepcopy(values[key])) for key in sorted(values)]
        values.clear()
        for key, value in items:
            if key == "_user_specified_name" and value.s.isdigit():  # the number of a captured variable
                continue
            if key == "shared_name" and value.s.isdigit():  # the number of a lookup table
                value.s = self._tables.setdefault(value.s, b"table_%d" % len(self._tables))
                self.table_attributes.append(values)
            new_key = self._text(key) if isinstance(key, str) else key
            if hasattr(value, "ListFields"):
                values[new_key].CopyFrom(value)
                self.rename(values[new_key])
            else:
                values[new_key] = self._text(value) if isinstance(value, str) else value

    def _text(self, text: str) -> str:
        return self._pattern.sub(lambda match: self._name(match[0]), text)

    def _name(self, name: str) -> str:
        if name not in self._names:
            self._names[name] = f"key_value_init{next(self._initializers)}"
        return self._names[name]


def canonical_keras(file: Path) -> None:
    """Rewrite a `.keras` file in place, without dates, and with shared objects numbered from 0."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    metadata = json.loads(members["metadata.json"])
    members["metadata.json"] = json.dumps({**metadata, "date_saved": _DATE_SAVED}).encode()
    numbers: dict[int, int] = {}

    def renumber(fields: dict[str, Any]) -> dict[str, Any]:
        if isinstance(address := fields.get("shared_object_id"), int):
            fields["shared_object_id"] = numbers.setdefault(address, len(numbers))
        return fields

    members["config.json"] = json.dumps(json.loads(members["config.json"], object_hook=renumber)).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, contents in members.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_DATE), contents)


def canonical_onnx(model: Any) -> None:
    """Name and order the tensors of an ONNX model by its graph, in place, and call the size of a batch `rows`."""
    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # the body of a loop refers to names outside of it
    names = {"": ""} | {value.name: value.name for value in (*graph.input, *graph.output)}
    for place, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{place}"
        for tensors in (node.input, node.output):
            tensors[:] = [names.setdefault(name, f"tensor_{len(names)}") for name in tensors]
    order = {name: place for place, name in enumerate(names)}
    weights = sorted((weight for weight in graph.initializer if weight.name in names), key=lambda w: order[w.name])
    for weight in weights:
        weight.name = names[weight.name]
    weights = copy.deepcopy(weights)
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(weights)
    graph.doc_string = ""
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
