"""`kdistill export`: a trained network to a file for a phone or a server, tried in the runtime it is for."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdistill import data
from kdistill.console import Reporter, silent
from kdistill.data.readers import BLOCK_ROWS
from kdistill.errors import KdistillError
from kdistill.evaluation import metrics
from kdistill.networks import exports
from kdistill.settings import Export
from kdistill.stages import announce, find_networks, up_to_date
from kdistill.stages.result import Result
from kdistill.workspace import Artifact, Input, Manifest, Workspace, size, threads
from kdistill.workspace import staleness as freshness

if TYPE_CHECKING:
    from kdistill.networks.saved_models import SavedNetwork

CALIBRATION_ROWS = 500


class ExportResult(Result):
    """An export, with errors and speed beside those of the SavedModel."""

    def as_json(self) -> dict[str, object]:
        return as_json(self.artifact, self.manifest)

    def show(self, reporter: Reporter) -> None:
        show(self.manifest, reporter)


def run(
    workspace: Workspace, settings: Export = Export(), *, force: bool = False, reporter: Reporter = Reporter()
) -> ExportResult:
    """Write a network for another runtime, and measure it there beside the original.

    Reads: `saved_model` of a student or teacher (`model.keras` after mixed precision), the dataset it was trained on.
    Writes: `exports/NAME/`.

    Raises:
        KdistillError: if there is no such network, the packages are missing, or the format can't express it.
    """
    network = find_networks(workspace, settings.network, "export")[0]
    trained = network.require()
    source = freshness.source(trained.inputs["dataset"], settings.data, network)
    at_hand = {trained.inputs["dataset"].digest} if settings.data else ()
    for change in freshness.stale(workspace, trained, at_hand):
        reporter.warn(f"{network} is stale, {change}: {network.command_for(trained)}")
    artifact = workspace.export(settings)
    identity = Manifest(
        kind="export",
        settings={
            "format": settings.format,
            "quantize": settings.quantize,
            **({"calibration_rows": CALIBRATION_ROWS} if settings.quantize == "int8" else {}),
        },
        inputs={"dataset": source.identity(), network.kind: Input(network.name, trained.outputs["saved_model"])},
    )
    reason = artifact.out_of_date(identity)
    if up_to_date(artifact, identity, reason, force=force, reporter=reporter):
        return ExportResult(artifact, artifact.require())

    exports.require(settings.format)
    dataset = source.load()
    announce(artifact, reason, reporter)

    from kdistill.backend import tf
    from kdistill.networks import loading as networks

    start = time.perf_counter()
    with artifact.writing() as staging, tf.device("/CPU:0"):  # where the other runtime computes too
        loaded, original = networks.load(network)
        if loaded != trained:
            raise KdistillError(f"{network} was made anew just now: run this again")
        original.check(dataset.input_shape, dataset.input_dtype, dataset.classes, dataset.name)
        file = staging.path / f"model.{settings.format}"
        calibration = exports.fed(_calibration_rows(dataset.train)) if settings.quantize == "int8" else None
        reporter.say(
            f"writes {network} as {settings.format}, quantized: {settings.quantize}"
            + ("" if calibration is None else f", calibrated on {len(calibration)} training rows")
        )
        description = {
            **dataset.description,
            "input": {
                "shape": list(dataset.input_shape),
                "dtype": original.input_dtype.name,
                "data_dtype": dataset.input_dtype,
                "divide_by": 255 if dataset.input_dtype == "uint8" else 1,  # as in `saved_models.scaled`
            },
        }
        runtime = _convert(network, trained, file, settings, calibration, description)
        results = {
            **description,
            **_measure(original, runtime, dataset),
            "bytes": size(file),
            "original_bytes": size(original.path),
            "threads": threads(),
        }
        manifest = staging.commit(identity, results=results, seconds=time.perf_counter() - start)
    reporter.say(f"wrote {artifact.path / file.name}; {manifest.seconds:.1f} s")
    return ExportResult(artifact, manifest)


def _calibration_rows(train: data.Split) -> NDArray[Any]:
    """Training rows, (rows, ...): always the same ones of the same split."""
    chosen = np.zeros(len(train), np.bool_)
    chosen[np.random.default_rng(0).permutation(len(train))[:CALIBRATION_ROWS]] = True
    return train.chosen(chosen).read()


def _convert(
    network: Artifact,
    trained: Manifest,
    file: Path,
    settings: Export,
    calibration: NDArray[np.float32] | None,
    description: Mapping[str, Any],
) -> exports.Runtime:
    """Write the file, with the description as JSON in its metadata, and nothing else that stays.

    Returns:
        What runs it.

    Raises:
        KdistillError: if the format has no word for something that the network does.
    """
    precision, made = trained.settings["precision"], exports.FORMATS[settings.format]
    saved_model = network.path / "saved_model"
    try:
        with tempfile.TemporaryDirectory(dir=file.parent) as aside, silent():
            place = Path(aside)
            if precision != "float32":
                saved_model = exports.in_float32(network.path / "model.keras", precision, place)
            made.write(saved_model, place / file.name, settings.quantize, calibration)
            text = json.dumps(description, ensure_ascii=False)
            file.write_bytes(made.describe((place / file.name).read_bytes(), text))
            return made.run(file, threads())
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a converter or a runtime raises
        raise KdistillError(f"{network} can't be written as {settings.format}: {exports.reason(error)}") from error


def _measure(original: SavedNetwork, runtime: exports.Runtime, dataset: data.Dataset) -> dict[str, Any]:
    """Errors and speed of both on the test rows; `original_` is before what is the SavedModel's."""
    blocks = [exports.fed(block) for block in dataset.test.blocks(BLOCK_ROWS)]
    said = np.concatenate([original.logits(block) for block in blocks])
    says = np.concatenate([runtime(block) for block in blocks])
    before, after = exports.race([original.logits, runtime], blocks[0])
    return {
        "test_rows": len(says),
        "test_errors": metrics.errors(says, dataset.test.labels),
        "original_test_errors": metrics.errors(said, dataset.test.labels),
        "agreement": float(metrics.agreement(said, says).mean()),
        "latency_ms": after.latency_ms,
        "original_latency_ms": before.latency_ms,
        "rows_per_second": after.rows_per_second,
        "original_rows_per_second": before.rows_per_second,
        "batch_rows": len(blocks[0]),
    }


def show(manifest: Manifest, reporter: Reporter) -> None:
    """Print the SavedModel and the export, a row each."""
    results, settings = manifest.results, manifest.settings
    network = next(made_from.name for role, made_from in manifest.inputs.items() if role != "dataset")
    quantized = "" if settings["quantize"] == "none" else f" {settings['quantize']}"
    rows = [
        (
            name,
            f"{results[f'{of}test_errors']:,}",
            agreement,
            f"{results[f'{of}bytes']:,}",
            f"{results[f'{of}latency_ms']:.3f}",
            f"{results[f'{of}rows_per_second']:,.0f}",
        )
        for name, of, agreement in (
            ("SavedModel", "original_", ""),
            (f"{settings['format']}{quantized}", "", f"{results['agreement']:.2%}"),
        )
    ]
    reporter.table(
        f"{network} on the test split, {results['test_rows']:,} rows",
        ("network", "errors", "agree", "bytes", "ms a row", "rows/s"),
        rows,
        note="agree: rows in which both have the same most likely class\n"
        f"ms a row: median of calls with one row; rows/s: in batches of {results['batch_rows']:,}; "
        f"CPU, {results['threads']} thread{'s' * (results['threads'] != 1)} for either",
    )


def as_json(artifact: Artifact, manifest: Manifest) -> dict[str, object]:
    """The same as a plain object."""
    return {"export": artifact.name, "path": str(artifact.path), **manifest.settings, **manifest.results}
