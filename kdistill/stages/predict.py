"""`kdistill predict`: run a network over rows without labels, and write what it predicts to a file."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill import cluster, data, tasks
from kdistill.cluster import Engine, Work
from kdistill.console import Reporter
from kdistill.data.read_ahead import TwoSteps, blocks_at_once
from kdistill.data.rows import NumberedBlocks, Rows
from kdistill.errors import KdistillError, UsageError
from kdistill.networks import exports
from kdistill.networks.description import check_description, describe
from kdistill.settings import Export, Predict
from kdistill.soft_targets.storage import check_usable
from kdistill.stages import block_log, prediction_files
from kdistill.stages.common import announce_rerun, find_networks, reason_to_run
from kdistill.stages.inputs import require_inputs
from kdistill.stages.result import Result
from kdistill.tasks import Prediction
from kdistill.workspace import Artifact, Input, Manifest, Workspace, commands, digest, threads

Outputs = Callable[[NDArray[Any]], NDArray[np.float32]]  # of rows (rows, ...), (rows, outputs)
BlockFunction = TwoSteps[NDArray[np.float32]]  # of the number of a block, (rows, outputs)


@dataclass(frozen=True)
class Network:
    """A trained or exported network.

    Attributes:
        identity: What it is, for the manifest.
        place: Where it is, for messages.
        load: Returns its description, as `Dataset.description`, and the function that computes its outputs.
        parallel: Whether several threads can compute outputs at the same time.
    """

    identity: Input
    place: str
    load: Callable[[], tuple[Any, Outputs]]
    parallel: bool = False


def run(workspace: Workspace, settings: Predict, *, force: bool = False, reporter: Reporter = Reporter()) -> Result:
    """Predict the classes, numbers or vectors of rows, and write them to a file.

    Reads: the rows; a student, a teacher or an exported network. The dataset of the network is not needed.
    Writes: the file, and `FILE.json`, its manifest.

    Args:
        workspace: Where the network is.
        settings: The rows, the network and the file.
        force: Replace a file that kdistill did not write.
        reporter: Prints the progress.

    Raises:
        KdistillError: If the network is missing, the rows do not fit it, or the file is not one of kdistill's.
    """
    network = _find_network(workspace, settings.network, settings.batch_size)
    source = data.resolve(settings.source, cache=None if settings.cluster.ray else workspace.cache)
    artifact = workspace.predictions(settings.output)
    _check_output(artifact, source, settings)
    identity = Manifest(
        kind="predictions",
        settings=settings.recorded(),
        inputs=(Input("data", source.name, source.digest()), network.identity),
    )
    out_of_date = _missing if force else _out_of_date
    reason = reason_to_run(artifact, identity, force=force, reporter=reporter, out_of_date=out_of_date)
    if reason is None:
        return Result(artifact, artifact.require())
    start = time.perf_counter()
    engine = cluster.engine(settings.cluster)
    description, outputs = network.load()
    check_description(description, network.place)
    rows = source.load_rows(description, settings.split)
    work = Work(
        _block_function(network, outputs, rows, settings.batch_size).map,
        prepare,
        (workspace.root.absolute(), settings, identity),
    )
    width = outputs(next(rows.blocks(1))).shape[1]
    with engine:
        announce_rerun(artifact, reason, reporter)
        reporter.say(f"Predicting {len(rows):,} rows of {source.name} with {network.place}")
        manifest = _write(artifact, identity, engine, work, description, width, len(rows), settings, start, reporter)
    reporter.say(
        f"Wrote {artifact.name}: {len(rows):,} rows, {manifest.results['outputs']} in {manifest.seconds:.1f} s"
    )
    return Result(artifact, manifest)


def _find_network(workspace: Workspace, name: str, batch_size: int) -> Network:
    """Find a network by the path of an exported file, or by the name of a student, a teacher or an export.

    It is called with `batch_size` rows at a time.
    """
    if Path(name).suffix.removeprefix(".") in exports.FORMATS:
        places = [Path(name).expanduser(), workspace.root / name]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise KdistillError(f"--network {name}: there is no such file")
        return _exported(file)
    exported = Export.named(name)
    if exported and workspace.export(exported).path.exists():
        artifact = workspace.export(exported)
        artifact.require()
        return _exported(artifact.path / f"model.{exported.format}")
    if "@" in name:
        raise KdistillError(
            f"there is no export {name!r}: {commands.default(workspace.export(exported))}"
            if exported
            else f"there is no network {name!r}"
        )
    artifact = find_networks(workspace, name, "predict")[0]
    manifest = artifact.require()

    def load() -> tuple[Any, Outputs]:
        from kdistill.networks.loading import load_network

        loaded, saved = load_network(artifact)
        if loaded != manifest:
            raise KdistillError(f"{artifact} was replaced while this command ran: run the command again")
        return describe(loaded, saved.input_shape), saved.compiled(batch_size).logits

    identity = Input(artifact.kind, artifact.name, manifest.outputs["saved_model"])
    return Network(identity, str(artifact), load, parallel=True)


def _exported(file: Path) -> Network:
    path = file.absolute()

    def load() -> tuple[Any, Outputs]:
        description, runtime = exports.load(path, threads())
        return description, lambda block: runtime(exports.runtime_inputs(block))

    return Network(Input("export", str(path), digest(path)), str(file), load)


def _check_output(artifact: Artifact, source: data.Source, settings: Predict) -> None:
    if artifact.path.is_dir():
        raise UsageError(f"--output {settings.output} is a directory (expected the name of a file)")
    with contextlib.suppress(OSError):
        if artifact.path.samefile(source.place):
            raise UsageError(f"--output {settings.output} is the data to predict: choose another name")
    prediction_files.require_packages(artifact.path)


def _missing(artifact: Artifact, identity: Manifest) -> str | None:  # noqa: ARG001 - as `Artifact.out_of_date`
    """Return that the file does not exist, or None. For `--force`, which replaces whatever is there."""
    return None if artifact.path.exists() else "it does not exist"


def _out_of_date(artifact: Artifact, identity: Manifest) -> str | None:
    """Return why the file must be written, or None if it is up to date.

    Raises:
        KdistillError: If kdistill did not write what is there, or if it was changed since.
    """
    _finish_commit(artifact)
    manifest, exists = None, artifact.path.exists()
    with contextlib.suppress(KdistillError):
        manifest = artifact.manifest()
    if manifest is None and not exists and not artifact.manifest_path.exists():
        return "it does not exist"
    if manifest is None or (exists and artifact.damage(manifest)):
        what = "and kdistill did not write it" if manifest is None else "and was changed since kdistill wrote it"
        path = artifact.path if exists else artifact.manifest_path
        raise KdistillError(f"{path} exists, {what}: pass another --output, or --force to replace it")
    return "; ".join(manifest.differences(identity)) or artifact.damage(manifest)


def _finish_commit(artifact: Artifact) -> None:
    """Put the manifest of a file beside it, if a process was killed after it had put the file in its place."""
    made = artifact.partial / artifact.manifest_path.name
    if artifact.dry_run or not made.exists() or artifact.writer():
        return
    with contextlib.suppress(KdistillError, OSError):
        manifest = Manifest.from_json(made.read_bytes(), str(made), str, kind=artifact.kind)
        if artifact.damage(manifest) is None:
            os.replace(made, artifact.manifest_path)


def _write(
    artifact: Artifact,
    identity: Manifest,
    engine: Engine,
    work: Work,
    description: Mapping[str, Any],
    width: int,
    rows: int,
    settings: Predict,
    start_time: float,
    reporter: Reporter,
) -> Manifest:
    """Fill the log with the outputs of the network, and write the file from it."""
    task = tasks.get(description["task"])
    names = description["class_names"] or [str(number) for number in range(width)]

    def blocks() -> Iterator[list[Prediction]]:
        start = 0
        for block in log.blocks():
            logits = block["outputs"]
            numbers = np.arange(start, start + len(logits))
            predictions = task.describe_predictions(logits, names, probabilities=settings.all)
            yield [Prediction("row", numbers), *predictions]
            start += len(logits)

    with artifact.writing() as staging:
        file = staging.path / artifact.path.name
        with block_log.open_log(staging.path, identity, {"outputs": ((width,), "<f4")}, rows) as log:
            block_log.fill(
                log,
                engine,
                work,
                lambda values: {"outputs": values},
                title="predict",
                rows=rows,
                batch_size=settings.batch_size,
                reporter=reporter,
            )
            if log.rows != rows:
                raise KdistillError(
                    f"the data has {rows:,} rows, and {log.rows:,} are done: run the same command again"
                )
            prediction_files.write(file, blocks(), log.rows)
            results = {"task": task.name, "rows": log.rows, "outputs": task.count(width)}
            seconds = time.perf_counter() - start_time
            manifest = identity.with_results(outputs={file.name: digest(file)}, results=results, seconds=seconds)
            manifest = replace(manifest, threads=engine.threads)
        staging.commit_file(file, beside=manifest)
    return manifest


def _block_function(network: Network, outputs: Outputs, rows: Rows, batch_size: int) -> BlockFunction:
    """Return a function that runs a network on a block of rows, by the number of the block."""
    blocks = NumberedBlocks(rows, batch_size)

    def read(number: int) -> tuple[int, NDArray[Any]]:
        return number * batch_size, blocks[number]

    def compute(block: tuple[int, NDArray[Any]]) -> NDArray[np.float32]:
        start, inputs = block
        values = outputs(inputs)
        check_usable(values, network.place, range(start, start + len(values)))
        return values

    return TwoSteps(read, compute, blocks_at_once(rows.shape[1:], batch_size, parallel=network.parallel))


def prepare(root: Path, settings: Predict, identity: Manifest) -> BlockFunction:
    """Return the same function in a worker, which opens the rows and the network itself.

    Raises:
        KdistillError: if this machine has other rows, or another network.
    """
    workspace = Workspace(root)
    require_inputs(workspace, identity)
    network = _find_network(workspace, identity.inputs[1].name, settings.batch_size)
    description, outputs = network.load()
    rows = data.resolve(identity.require_input("data").name).load_rows(description, settings.split)
    return _block_function(network, outputs, rows, settings.batch_size)
