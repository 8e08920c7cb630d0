"""The model card of an exported network: `README.md` with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdistill import tasks
from kdistill.console.text import printable
from kdistill.data import short_name
from kdistill.data.preprocessing import TablePreprocessing
from kdistill.tasks import Column, Task

LIBRARIES = {"tflite": "litert", "onnx": "onnx"}  # by format, as the Hub names them
LISTED_CLASSES = 20
LISTED_CHARACTERS = 80  # of a name
TRAINING = ("model", "loss", "temperature", "alpha", "epochs", "seed")

ARRAY_EXAMPLE = """\
import json

import numpy as np
{imports}

with open("kdistill.json", encoding="utf-8") as file:
    description = json.load(file)
shape, dtype, divide_by = (description["input"][key] for key in ("shape", "dtype", "divide_by"))
rows = np.zeros((2, *shape), dtype) / np.array(divide_by, dtype)  # put your rows here
{call}
print(outputs)
"""
RUNTIMES = {  # by format: the imports, and the lines that compute `outputs` of `rows`
    "tflite": (
        "from ai_edge_litert.interpreter import Interpreter",
        """\
interpreter = Interpreter(model_path="model.tflite")
interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], rows.shape)
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], rows.astype(dtype))
interpreter.invoke()
outputs = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])""",
    ),
    "onnx": (
        "import onnxruntime",
        """\
session = onnxruntime.InferenceSession("model.onnx")
(outputs,) = session.run(None, {session.get_inputs()[0].name: rows.astype(dtype)})""",
    ),
}


@dataclass(frozen=True)
class Exported:
    """What a model card tells of an exported network.

    Attributes:
        name: of the export.
        role: `student` or `teacher`.
        dataset: the name of the dataset; only its last part is shown.
        settings: of the export: `format` and `quantize`.
        training: the settings of the network.
        trained: the results of training.
        results: of the export: the description of the network, and measures of the exported file and the SavedModel.
    """

    name: str
    role: str
    dataset: str
    settings: Mapping[str, Any]
    training: Mapping[str, Any]
    trained: Mapping[str, Any]
    results: Mapping[str, Any]

    @property
    def task(self) -> Task:
        """What the outputs are."""
        return tasks.get(self.results["task"])

    @property
    def table(self) -> TablePreprocessing | None:
        """How the columns of a table become inputs; None if the inputs are not a table."""
        return TablePreprocessing.from_json(self.results["preprocessing"])

    @property
    def hub_task(self) -> str:
        """The task in the terms of the Hub, e.g. `tabular-regression`."""
        data = "table" if self.table else "image" if len(self.results["input"]["shape"]) in (2, 3) else "other"
        return self.task.hub_tasks.get(data, "other")


def model_card(exported: Exported) -> str:
    """Return the text of `README.md`. It contains no directories, and depends only on the arguments."""
    return "\n".join(["---", *_yaml(_metadata(exported)), "---", "", *_body(exported), ""])


def example(exported: Exported) -> str:
    """Return a short Python program that runs the exported network, for the directory of the export."""
    if table := exported.table:
        row: dict[str, Any] = {}
        for name in table.inputs:
            row[name] = (
                table.categories[name][0] if name in table.categories else float(f"{table.statistics[name][0]:.4g}")
            )
        lines = "".join(f"    {name!r}: {value!r},\n" for name, value in row.items())
        return f"from predict import predict\n\nrow = {{\n{lines}}}\nprint(predict([row]))\n"
    imports, call = RUNTIMES[exported.settings["format"]]
    return ARRAY_EXAMPLE.format(imports=imports, call=call)


def _metadata(exported: Exported) -> dict[str, Any]:
    settings, hub_task = exported.settings, exported.hub_task
    quantized = [] if settings["quantize"] == "none" else [settings["quantize"]]
    metadata: dict[str, Any] = {
        "library_name": LIBRARIES[settings["format"]],
        **({} if hub_task == "other" else {"pipeline_tag": hub_task}),
        "tags": ["knowledge-distillation", "kdistill", settings["format"], *quantized],
    }
    dataset = short_name(exported.dataset)
    if metrics := list(_metrics(exported)):
        result = {
            "task": {"type": hub_task, "name": exported.task.name},
            "dataset": {"type": dataset, "name": dataset, "split": "test"},
            "metrics": metrics,
        }
        metadata["model-index"] = [{"name": exported.name, "results": [result]}]
    return metadata


def _metrics(exported: Exported) -> Iterator[dict[str, Any]]:
    """Yield the measures on the test rows, or the closeness to the SavedModel for a task that is measured against a teacher."""
    task, results = exported.task, exported.results
    heads = {column.measure: column.head for column in task.columns}
    measured = {key.removeprefix("test_"): value for key, value in results.items() if key.startswith("test_")}
    del measured["rows"]
    if not measured:
        heads = {task.closeness.measure: f"{task.closeness.head} to the SavedModel"}
        measured = {task.closeness.measure: results["closeness"]}
    for measure, value in measured.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield {"type": measure, "name": heads.get(measure, measure), "value": value}


def _body(exported: Exported) -> Iterator[str]:
    settings, results, trained, task = exported.settings, exported.results, exported.trained, exported.task
    quantized = "" if settings["quantize"] == "none" else f", quantized to {settings['quantize']}"
    teachers = [name.rsplit("/", 1)[-1] for name in (trained.get("teacher") or "").split(" + ") if name]
    learned = f"distilled from {' and '.join(map(_code, teachers))}" if teachers else "trained on labels"
    yield f"# {exported.name}"
    yield ""
    yield (
        f"A {exported.role} network for {task.name}, {learned} with kdistill, and converted to {settings['format']}{quantized}. It "
        f"has {trained['parameters']:,} parameters, and the file has {results['bytes']:,} bytes."
    )
    yield from ("", "## Use", "", "Run this in the directory of this file:", "", "```python")
    yield example(exported).rstrip("\n")
    yield from ("```", "")
    yield from _inputs(exported)
    yield from (
        "",
        "## Measures",
        "",
        f"On {results['test_rows']:,} test rows of {_code(short_name(exported.dataset))}:",
        "",
    )
    yield from ("| measure | this file | SavedModel |", "|---|---|---|")
    for column in task.columns:
        if f"test_{column.measure}" in results:
            cells = [column(results[f"{prefix}test_{column.measure}"]) for prefix in ("", "original_")]
            yield f"| {column.head} | {cells[0]} | {cells[1]} |"
    closeness: Column = task.closeness
    yield f"| {closeness.head} | {closeness(results['closeness'])} | |"
    yield from (
        "",
        f"{closeness.head}: how close the outputs of both are.",
        "",
        "## Training",
        "",
        "| setting | value |",
        "|---|---|",
    )
    for key in TRAINING:
        if (value := exported.training.get(key)) is not None:
            cell = _code(str(value).rsplit("/", 1)[-1]).replace("|", r"\|")
            yield f"| {key.replace('_', ' ')} | {cell} |"


def _inputs(exported: Exported) -> Iterator[str]:
    results, table, names = exported.results, exported.table, exported.results["class_names"] or []
    if table:
        yield "The inputs are the columns in the example. `predict.py` prepares them; it needs no kdistill. For a CSV:"
        yield "`python predict.py rows.csv`."
    else:
        shape, dtype = results["input"]["shape"], results["input"]["dtype"]
        divide = f", divided by {results['input']['divide_by']}" if results["input"]["divide_by"] != 1 else ""
        yield f"The inputs are rows of shape ({', '.join(map(str, shape))}){divide}, as {dtype}."
    if names and exported.task.needs_labels:
        more = f", and {len(names) - LISTED_CLASSES:,} more" if len(names) > LISTED_CLASSES else ""
        listed = ", ".join(map(_code, names[:LISTED_CLASSES]))
        yield f"The outputs are {exported.task.output}, {exported.task.count(len(names))}: {listed}{more}."


def _code(text: str) -> str:
    """Return a text of the data as inline code: Markdown shows it as it is, without markup, links or HTML."""
    shown = printable(text if len(text) <= LISTED_CHARACTERS else f"{text[:LISTED_CHARACTERS]}...")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    padding = " " if len(fence) > 1 else ""
    return f"{fence}{padding}{shown or ' '}{padding}{fence}"


def _yaml(value: Any) -> Iterator[str]:
    """Yield the lines of a non-empty dict or list as YAML. Its texts are written as in JSON, which YAML includes."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list):
                yield f"{key}:"
                yield from (f"  {line}" for line in _yaml(item))
            else:
                yield f"{key}: {_scalar(item)}"
    else:
        for item in value:
            first, *rest = _yaml(item) if isinstance(item, dict | list) else [_scalar(item)]
            yield from (f"- {first}", *(f"  {line}" for line in rest))


def _scalar(value: str | float) -> str:
    if not isinstance(value, str):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text  # YAML 1.1 takes 1e-05 for a text
    text = json.dumps(printable(value), ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)
