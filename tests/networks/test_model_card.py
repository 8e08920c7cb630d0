"""Model cards: the metadata that the Hub reads, and texts of the data that stay texts."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from kdistill import tasks
from kdistill.networks.model_card import Exported, example, model_card
from kdistill.settings import TASKS

HOSTILE = [
    "<script>alert(1)</script>",
    "a | b",
    "[x](https://example.com)",
    "`` ` ``",
    "**b**\n---\n",
    "\x1b[31m\uffff: ü",
]
TABLE = {
    "table": {"inputs": ["it's", "```"], "labels": "y", "missing": "mean", "categories": {"```": ["'''\n```\n", "b"]}},
    "standardised": {"it's": [1.23456, 2.0]},
}


def exported(task="classification", preprocessing=None, shape=(28, 28), **results):
    """Return an exported student whose names of classes and files are hostile."""
    measures = [column.measure for column in tasks.get(task).columns if task != "embedding"]
    values = {f"{prefix}test_{measure}": 0.25 for measure in measures for prefix in ("", "original_")}
    described = {"task": task, "class_names": HOSTILE, "preprocessing": preprocessing or {}}
    given = {"input": {"shape": list(shape), "dtype": "float32", "data_dtype": "uint8", "divide_by": 255}}
    return Exported(
        "s@student-onnx",
        "student",
        "/home/me/secret/a|b.csv",
        {"format": "onnx", "quantize": "int8"},
        {"model": "/home/me/nets.py:a|b", "temperature": 4.0, "alpha": None},
        {"parameters": 1234, "teacher": "big + /home/me/their/saved_model"},
        {**described, **given, "test_rows": 100, "bytes": 99, "closeness": 1e-05, **values, **results},
    )


def metadata_of(card):
    """Return the metadata as the Hub finds it: the YAML between the first two lines of three dashes."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return yaml.safe_load(re.match(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))", card)[2])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("preprocessing", [None, TABLE])
def test_metadata(task, preprocessing):
    """Every task has a result with its measures, or how close the outputs are to those of the SavedModel."""
    metadata = metadata_of(model_card(exported(task, preprocessing)))
    assert metadata["library_name"] == "onnx"
    assert set(metadata["tags"]) >= {"knowledge-distillation", "onnx", "int8"}
    assert "license" not in metadata
    (entry,) = metadata["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "s@student-onnx"
    assert result["dataset"] == {"type": "a|b.csv", "name": "a|b.csv", "split": "test"}
    assert metadata.get("pipeline_tag", "other") == result["task"]["type"]
    measured = {metric["type"]: metric["value"] for metric in result["metrics"]}
    columns = [column.measure for column in tasks.get(task).columns]
    assert measured == ({"cosine": 1e-05} if task == "embedding" else dict.fromkeys(columns, 0.25))


def test_values_that_are_no_numbers_are_left_out():
    metadata = metadata_of(model_card(exported("regression", test_rmse=float("nan"), test_r2=float("-inf"))))
    assert {metric["type"] for metric in metadata["model-index"][0]["results"][0]["metrics"]} == {
        "mae",
        "rmse_to_teacher",
    }


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("preprocessing", [None, TABLE])
def test_texts_of_the_data_stay_texts(task, preprocessing):
    """No text of the data becomes HTML, a link or another part of the page, and no directory is named."""
    card = model_card(exported(task, preprocessing))
    assert "/home" not in card
    assert "secret" not in card
    body = card.split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in (*tokens, *inline)}.isdisjoint(
        {"html_block", "html_inline", "link_open", "hr", "strong_open"}
    )
    (code,) = [token.content for token in tokens if token.type == "fence"]
    assert code == example(exported(task, preprocessing))
    compile(code, "example", "exec")
    shown = [token.content for token in inline if token.type == "code_inline"]
    assert {"big", "saved_model", "nets.py:a|b"} <= set(shown)
    if task != "embedding":
        assert set(shown) >= {"<script>alert(1)</script>", "[x](https://example.com)", "`` ` ``", "\\x1b[31m\uffff: ü"}
