"""`kdistill export`: write a network as TFLite or ONNX, and measure it in that runtime."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdistill import data, tasks
from kdistill.console import Reporter
from kdistill.console.native_stderr import silent
from kdistill.data.rows import BLOCK_ROWS
from kdistill.errors import KdistillError
from kdistill.networks import deployed_table, exports
from kdistill.networks.model_card import Exported, model_card
from kdistill.settings import Export
from kdistill.stages import common
from kdistill.stages.result import Result
from kdistill.tasks import Column, Headline
from kdistill.workspace import Artifact, Input, Manifest, Workspace, size, threads

if TYPE_CHECKING:
    from kdistill.networks.saved_models import SavedNetwork

CALIBRATION_ROWS = 500


class ExportResult(Result):
    """An exported network, compared with the SavedModel that it was made from."""

    def as_json(self) -> dict[str, object]:
        """Return the settings and the measurements."""
        manifest = self.manifest
        return {
            "export": self.artifact.name,
            "path": str(self.artifact.path),
            **manifest.settings,
            **manifest.results,
        }

    def show(self, reporter: Reporter) -> None:
        """Print a row for the SavedModel and one for the exported network."""
        results, settings = self.manifest.results, self.manifest.settings
        task = tasks.get(results["task"])
        network = self.manifest.inputs_of("student", "teacher")[0].name
        quantized = "" if settings["quantize"] == "none" else f" {settings['quantize']}"
        rows = [
            (
                name,
                formatted(task.headline, results.get(f"{prefix}test_{task.headline.measure}")),
                agreement,
                f"{results[f'{prefix}bytes']:,}",
                f"{results[f'{prefix}latency_ms']:.3f}",
            )
            for name, prefix, agreement in (
                ("SavedModel", "original_", ""),
                (f"{settings['format']}{quantized}", "", formatted(task.closeness, results.get("closeness"))),
            )
        ]
        reporter.table(
            f"{network} on the test split, {results['test_rows']:,} rows",
            ("network", task.headline.label, task.closeness.head, "bytes", "ms/row"),
            rows,
            note=f"{task.closeness.head}: how close the outputs of both are\n"
            f"ms/row: median of calls with one row; CPU, {results['threads']} thread{'s' * (results['threads'] != 1)}",
        )


def formatted(column: Headline | Column, value: float | None) -> str:
    return "" if value is None else column(value)


def run(
    workspace: Workspace, settings: Export = Export(), *, force: bool = False, reporter: Reporter = Reporter()
) -> ExportResult:
    """Write a network for another runtime, and measure it there.

    Reads: `saved_model` of a student or teacher (`model.keras` after mixed precision), and its dataset.
    Writes: `exports/NAME/`, with a model card, and for a table a program that predicts rows of it.

    Raises:
        KdistillError: If there is no such network, packages are missing, or the format cannot express the network.
    """
    network = common.find_networks(workspace, settings.network, "export")[0]
    trained, source = common.open_network(workspace, network, settings.data, reporter)
    artifact = workspace.export(settings)
    recorded = {"calibration_rows": CALIBRATION_ROWS} if settings.quantize == "int8" else {}
    identity = Manifest(
        kind="export",
        settings={"format": settings.format, "quantize": settings.quantize, **recorded},
        inputs=(
            Input("dataset", source.name, source.digest()),
            Input(network.kind, network.name, trained.outputs["saved_model"]),
        ),
    )
    reason = common.reason_to_run(artifact, identity, force=force, reporter=reporter)
    if reason is None:
        return ExportResult(artifact, artifact.require())

    exports.require_packages(settings.format)
    dataset = source.load()
    if dataset.input_dtype == "string":
        raise KdistillError(
            f"{settings.format} has no operations that split texts into words: deploy {network.path / 'saved_model'} instead, which "
            "takes texts"
        )
    common.announce_rerun(artifact, reason, reporter)

    from kdistill.backend import tf

    start = time.perf_counter()
    with artifact.writing() as staging, tf.device("/CPU:0"):  # The exported network runs on the CPU too.
        original = common.load_checked_network(network, trained, dataset)
        file = staging.path / f"model.{settings.format}"
        calibration, calibrated = None, ""
        if settings.quantize == "int8":
            calibration = exports.runtime_inputs(common.sample_rows(dataset.train, CALIBRATION_ROWS).read())
            calibrated = f", calibrated on {len(calibration)} training rows"
        reporter.say(f"Converting {network} to {settings.format}, quantization: {settings.quantize}{calibrated}")
        description = {
            **dataset.description,
            "input": {**dataset.description["input"], "dtype": original.input_dtype.name},
        }
        runtime = _convert(network, trained, file, settings, calibration, description)
        results = {
            **description,
            **_compare(original, runtime, dataset),
            "bytes": size(file),
            "original_bytes": size(original.path),
            "threads": threads(),
        }
        exported = Exported(
            artifact.name, network.kind, source.name, identity.settings, trained.settings, trained.results, results
        )
        _write_companions(staging.path, exported, description)
        manifest = staging.commit(identity, results=results, seconds=time.perf_counter() - start)
    reporter.say(f"Wrote {artifact.path / file.name} in {manifest.seconds:.1f} s")
    return ExportResult(artifact, manifest)


def _write_companions(directory: Path, exported: Exported, description: Mapping[str, Any]) -> None:
    """Write what explains an exported network: its description, its model card, and `predict.py` for a table."""
    text = json.dumps(description, ensure_ascii=False, indent=2)
    (directory / exports.DESCRIPTION).write_text(f"{text}\n", encoding="utf-8")
    (directory / "README.md").write_text(model_card(exported), encoding="utf-8")
    if exported.table:
        shutil.copyfile(deployed_table.__file__, directory / "predict.py")


def _convert(
    network: Artifact,
    trained: Manifest,
    file: Path,
    settings: Export,
    calibration: exports.Inputs | None,
    description: Mapping[str, Any],
) -> exports.Runtime:
    """Write the exported network, with the description as JSON in its metadata.

    Returns:
        The network in its own runtime.

    Raises:
        KdistillError: If the format cannot express an operation of the network.
    """
    precision, file_format = trained.settings["precision"], exports.FORMATS[settings.format]
    saved_model = network.path / "saved_model"
    try:
        with tempfile.TemporaryDirectory(dir=file.parent) as name, silent():
            temporary = Path(name)
            if precision != "float32":
                saved_model = exports.save_in_float32(network.path / "model.keras", precision, temporary)
            file_format.write(saved_model, temporary / file.name, settings.quantize, calibration)
            text = json.dumps(description, ensure_ascii=False)
            file.write_bytes(file_format.describe((temporary / file.name).read_bytes(), text))
            return file_format.run(file, threads())
    except (OSError, MemoryError):
        raise
    except Exception as error:  # Converters and runtimes raise errors of any type.
        raise KdistillError(f"cannot convert {network} to {settings.format}: {exports.error_line(error)}") from error


def _compare(original: SavedNetwork, runtime: exports.Runtime, dataset: data.Dataset) -> dict[str, Any]:
    """Return the measures and latencies of both networks, and how close their outputs are."""
    blocks = [exports.runtime_inputs(block) for block in dataset.test.blocks(BLOCK_ROWS)]
    original_outputs = np.concatenate([original.logits(block) for block in blocks])
    outputs = np.concatenate([runtime(block) for block in blocks])
    task, labels = dataset.task, dataset.test.labels
    measures = task.measure([outputs], labels, [original_outputs])
    row = blocks[0][:1]
    return {
        "test_rows": len(outputs),
        "summary": task.describe(measures, len(outputs)),
        **{f"test_{name}": value for name, value in task.measure([outputs], labels).items()},
        **{f"original_test_{name}": value for name, value in task.measure([original_outputs], labels).items()},
        "closeness": measures[task.closeness.measure],
        "latency_ms": exports.median_latency(runtime, row),
        "original_latency_ms": exports.median_latency(original.logits, row),
    }
