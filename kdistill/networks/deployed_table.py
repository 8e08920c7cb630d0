"""Predict rows of a table with the network beside this file: `python predict.py rows.csv > predictions.csv`.

`kdistill export` copies this file beside the network as `predict.py`. It needs NumPy, and LiteRT (`pip install
ai-edge-litert`) for `model.tflite` or ONNX Runtime (`pip install onnxruntime`) for `model.onnx`, but not kdistill.
`kdistill.json` says what the columns are, and how the training rows were standardized.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")  # in a CSV
BOOLEANS = {"true": 1.0, "false": 0.0}
SEPARATORS = ",;\t|"


def load_description() -> dict[str, Any]:
    """Return the description of the network: its task, the names of its outputs, and the preprocessing."""
    description: dict[str, Any] = json.loads((HERE / "kdistill.json").read_text(encoding="utf-8"))
    return description


def network_inputs(rows: Sequence[Mapping[str, Any]], preprocessing: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the inputs of the network, (rows, inputs).

    Raises:
        ValueError: if a row lacks a column or a value that the network needs, or has a text instead of a number.
    """
    table, statistics = preprocessing["table"], preprocessing["standardised"]
    result = []
    for number, row in enumerate(rows):
        values: list[float] = []
        for name in table["inputs"]:
            where = f"row {number}, column {name!r}"
            if name not in row:
                raise ValueError(f"{where}: there is no such column")
            value = row[name]
            missing = value is None or value != value or value in MISSING  # noqa: PLR0124 - NaN differs from itself
            if missing and table["missing"] != "mean":
                raise ValueError(f"{where}: the value is missing")
            if name in table["categories"]:
                values += [float(not missing and str(value) == category) for category in table["categories"][name]]
            else:
                mean, deviation = statistics[name]
                distance = 0.0 if missing else _number(value, where) - mean
                values.append(distance * (1 / deviation) if deviation else 0.0)
        result.append(values)
    return np.array(result, np.float32)


def _number(value: Any, where: str) -> float:
    text = str(value).lower()
    if text in BOOLEANS:
        return BOOLEANS[text]
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise ValueError(f"{where}: {value!r} is not a finite number")
    return number


def network_outputs(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the outputs of the network, (rows, outputs): logits, or numbers in the unit of the labels."""
    if (file := HERE / "model.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0])
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(HERE / "model.tflite"))
    entry, output = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    interpreter.resize_tensor_input(entry, inputs.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry, inputs)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(output))


def _softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def _sigmoid(logits: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return np.asarray(1 / (1 + np.exp(-logits)))


Decide = Callable[[Sequence[str], NDArray[Any]], str]
PROBABILITIES: dict[str, tuple[Callable[[NDArray[Any]], NDArray[Any]], Decide]] = {  # by task; others output values
    "classification": (_softmax, lambda names, row: names[int(row.argmax())]),
    "multi-label": (
        _sigmoid,
        lambda names, row: ";".join(name for name, value in zip(names, row, strict=True) if value > 0.5),
    ),
}


def predict(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the network predicts for each row: `prediction` and a probability per class, or only values by name.

    Args:
        rows: each a value by the name of its column. None, NaN and an empty text are missing values.

    Raises:
        ValueError: if a row lacks a column or a value that the network needs, or has a text instead of a number.
    """
    if not rows:
        return []
    description = load_description()
    outputs = network_outputs(network_inputs(rows, description["preprocessing"])).astype(np.float64)
    names = description["class_names"] or []
    if description["task"] == "embedding" or len(names) != outputs.shape[1]:
        names = [str(number) for number in range(outputs.shape[1])]
    if description["task"] not in PROBABILITIES:
        return [dict(zip(names, row.tolist(), strict=True)) for row in outputs]
    activation, decide = PROBABILITIES[description["task"]]
    return [
        {"prediction": decide(names, row), **dict(zip(names, row.tolist(), strict=True))} for row in activation(outputs)
    ]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV with a header. The separator is the most frequent one of `SEPARATORS` in it."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = re.sub(r'"[^"]*"', "", file.readline())
        file.seek(0)
        return list(csv.DictReader(file, delimiter=max(SEPARATORS, key=header.count)))


def main() -> None:
    """Print the predictions for the CSV that the command line names, as CSV."""
    if len(sys.argv) != 2:
        sys.exit("usage: python predict.py rows.csv")
    try:
        predictions = predict(read_csv(Path(sys.argv[1])))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if predictions:
        writer = csv.DictWriter(sys.stdout, list(predictions[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(predictions)


if __name__ == "__main__":
    main()
