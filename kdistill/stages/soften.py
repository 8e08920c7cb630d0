"""`kdistill soften`: run a teacher over the transfer set and store its logits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdistill import cluster, data, soft_targets, teachers
from kdistill.cluster import Engine, Work
from kdistill.console import Reporter
from kdistill.data import Dataset, Split
from kdistill.data.keys import positions
from kdistill.data.reader import check_file
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import Soften, TrainTeacher
from kdistill.soft_targets import LogitStorage, SoftTargets, full_transfer_set
from kdistill.stages import block_log
from kdistill.stages.common import (
    announce_data,
    announce_rerun,
    reason_to_run,
    warn_if_stale,
)
from kdistill.stages.inputs import staleness
from kdistill.stages.result import Result
from kdistill.stages.soften_blocks import SoftBlock, block_function, prepare
from kdistill.teachers import EXTERNAL_OPTIONS, ZERO_MASS, Ensemble, PrecomputedLogits, UnloadedTeacher, ZeroCount
from kdistill.workspace import Artifact, Input, Manifest, Workspace, commands, digest, size
from kdistill.workspace.kinds import INPUTS
from kdistill.workspace.resume_log import Block, BlockLog


def run(
    workspace: Workspace, settings: Soften = Soften(), *, force: bool = False, reporter: Reporter = Reporter()
) -> Result:
    """Run the teachers once over the transfer set, and store their logits.

    Reads: `teachers/NAME/saved_model`, external networks or a file of logits; the dataset and the transfer sets.
    Writes: `soft-targets/NAME.h5`.

    Raises:
        KdistillError: If there is no such teacher, or the data does not fit it.
    """
    requested = () if settings.logits else settings.teachers or (TrainTeacher.name,)
    members = [teachers.find_teacher(workspace, name) for name in requested]
    option, cache = "dataset" if settings.data else None, None if settings.cluster.ray else workspace.cache
    source = data.resolve(settings.data or _dataset_of(members), option=option, cache=cache)
    dataset_input = Input("dataset", source.name, source.digest())
    look = staleness(workspace, {dataset_input.digest} if settings.data else ())
    for member in members:
        if member.artifact and member.manifest:
            warn_if_stale(look, member.artifact, member.manifest, reporter)
    external = settings.logits is not None or any(member.artifact is None for member in members)
    artifact = workspace.soft_targets(settings.name)
    identity = _identity(settings, members, dataset_input, external=external)
    reason = reason_to_run(artifact, identity, force=force, reporter=reporter, out_of_date=_out_of_date)
    if reason is None:
        return Result(artifact, artifact.manifest() or identity)
    engine = cluster.engine(settings.cluster)
    dataset = source.load()
    _check_top_k(settings, dataset)
    full = full_transfer_set(identity, dataset, cache)
    announce_data(reporter, dataset, full)
    mask = data.selection_mask(full, settings.selection, dataset)
    if summary := data.describe_selection(full, settings.selection, mask):
        reporter.say(summary)
    rows = full.select(mask)

    start = time.perf_counter()
    teacher: Ensemble | PrecomputedLogits
    if settings.logits:
        path = Path(identity.require_input("logits").name)
        teacher = logits = teachers.read_logits(path, settings.teacher_output, dataset, full, mask)
        reporter.say(logits.order)
        _report_test_errors(identity, dataset, reporter)
    else:
        teacher = teachers.load_ensemble(members, settings, dataset, rows)
    architecture = dict.fromkeys(("model", "parameters"))
    if len(members) == 1 and members[0].manifest:
        architecture = {name: members[0].manifest.results[name] for name in architecture}
    storage = LogitStorage.of(identity.settings, dataset.outputs or teacher.outputs, dataset.task.name)
    names = " + ".join(soft_targets.teacher_names(identity))
    work = Work(
        block_function(teacher, rows, storage, settings.batch_size, names).map,
        prepare,
        (workspace.root.absolute(), settings, identity, storage),
    )
    facts = {**architecture, "probabilities": list(teacher.probabilities)}
    with engine:
        announce_rerun(artifact, reason, reporter)
        _describe(identity, teacher, dataset, rows, reporter)
        manifest = _write(artifact, identity, engine, work, rows, storage, settings.batch_size, facts, start, reporter)
    _report(artifact, manifest, settings, dataset, reporter)
    if external:
        _warn_if_trained_on(manifest, rows, dataset, reporter)
    reporter.say(f"Next: {commands.after_soften(workspace.root, settings.name, manifest.results)}")
    return Result(artifact, manifest)


def _check_top_k(settings: Soften, dataset: Dataset) -> None:
    if settings.top_k is not None and not dataset.task.categorical:
        raise UsageError(f"--top-k does not apply to the task {dataset.task.name}: remove it")
    if settings.top_k is not None and settings.top_k >= dataset.classes:
        raise UsageError(
            f"--top-k {settings.top_k} is too large (expected less than the {dataset.classes} classes of {dataset.name})"
        )


def _write(
    artifact: Artifact,
    identity: Manifest,
    engine: Engine,
    work: Work,
    rows: Split,
    storage: LogitStorage,
    batch_size: int,
    facts: Mapping[str, Any],
    start_time: float,
    reporter: Reporter,
) -> Manifest:
    """Fill the log with logits, and write the file from it."""
    with artifact.writing() as staging:
        file = staging.path / artifact.path.name
        columns = {"row_keys": ((16,), "u1"), **storage.columns}
        with block_log.open_log(staging.path, identity, columns, len(rows)) as log:
            _fill_log(log, engine, work, len(rows), batch_size, reporter)
            manifest = soft_targets.write(
                file,
                log,
                identity,
                rows.labels,
                storage,
                start_time=start_time,
                teacher=facts,
                threads=engine.threads,
            )
        staging.commit_file(file)
    return manifest


def _dataset_of(members: Sequence[UnloadedTeacher]) -> str:
    """Return the name of the dataset that all teachers were trained on."""
    names = list(dict.fromkeys(member.manifest.require_input("dataset").name for member in members if member.manifest))
    if not names:
        raise UsageError(
            "--dataset is missing: external teachers and files of logits do not record it, so add --dataset DATA"
        )
    if len(names) > 1:
        raise UsageError(
            f"--dataset is missing: the teachers were trained on different datasets, {' and '.join(names)}"
        )
    return names[0]


def _identity(settings: Soften, members: Sequence[UnloadedTeacher], dataset: Input, *, external: bool) -> Manifest:
    inputs = [dataset]
    for index, name in enumerate(settings.transfer_data, 1):
        transfer_set = data.resolve(name, option="transfer-set")
        inputs.append(Input("transfer_set", transfer_set.name, transfer_set.digest(), index))
    inputs += [replace(member.identity, index=index) for index, member in enumerate(members, 1)]
    for kind, file in (("logits", settings.logits), ("test_logits", settings.test_logits)):
        if file is None:
            continue
        path, option = Path(file).expanduser().absolute(), kind.replace("_", "-")
        check_file(f"--{option} {file}", str(path))
        inputs.append(Input(kind, str(path), digest(path)))
    recorded = settings.recorded()
    recorded["zero_mass"] = ZERO_MASS if external and settings.teacher_output != "logits" else None
    if not external:  # These options have no effect on teachers of the workspace.
        recorded |= {name: getattr(Soften, name) for name in EXTERNAL_OPTIONS}
    if len(members) < 2:
        recorded["mean"] = None
    return Manifest(kind="soft targets", settings=recorded, inputs=tuple(inputs))


def _out_of_date(artifact: Artifact, identity: Manifest) -> str | None:
    """Return why the file must be written, or None if it is up to date."""
    try:
        soft = SoftTargets.open(artifact)
    except KdistillError as error:
        if artifact.path.is_dir():
            raise
        return str(error)
    if soft is None:
        return "it does not exist"
    return "; ".join(soft.manifest.differences(identity)) or None


def _describe(
    identity: Manifest, teacher: Ensemble | PrecomputedLogits, dataset: Dataset, rows: Split, reporter: Reporter
) -> None:
    settings, names = identity.settings, soft_targets.teacher_names(identity)
    for name, is_probabilities in zip(names, teacher.probabilities, strict=True):
        if is_probabilities:
            reporter.say(f"{name} returns probabilities: their logarithms are used as logits")
    views = f"{settings['views']} views ({settings['augment']}) of " if settings["views"] else ""
    transfer_sets = " + ".join(each.name for each in identity.inputs_of("transfer_set"))
    labeled = f" ({rows.labeled_rows:,} labeled)" if rows.labeled_rows < len(rows) else ""
    mean = f" ({settings['mean']} mean)" if len(names) > 1 and dataset.task.uses_temperature else ""
    at_temperature = f" at T = {settings['temperature']:g}" if dataset.task.uses_temperature else ""
    reporter.say(
        f"Softening {views}{len(rows):,} rows of {transfer_sets or dataset.name}{labeled} with {' + '.join(names)}{mean}"
        + at_temperature
    )


def _fill_log(log: BlockLog, engine: Engine, work: Work, rows: int, batch_size: int, reporter: Reporter) -> None:
    """Append the logits of all rows that are not in the log yet."""
    zeros = ZeroCount()

    def to_block(result: SoftBlock) -> Block:
        zeros.add(result.zeros)
        return result.rows

    block_log.fill(log, engine, work, to_block, title="soften", rows=rows, batch_size=batch_size, reporter=reporter)
    if zeros.count:
        reporter.say(str(zeros))


def _report_test_errors(identity: Manifest, dataset: Dataset, reporter: Reporter) -> None:
    """Read the teacher's outputs of the test rows, if there is a file of them, and say how good they are."""
    if file := identity.input("test_logits"):
        stored = teachers.StoredTeacher.load(Path(file.name), identity.settings["teacher_output"], dataset)
        measures = dataset.task.measure([stored.values], dataset.test.labels)
        reporter.say(stored.order)
        reporter.say(f"{file.name}: {dataset.task.describe(measures, len(dataset.test))}")


def _report(artifact: Artifact, manifest: Manifest, settings: Soften, dataset: Dataset, reporter: Reporter) -> None:
    results, task = manifest.results, dataset.task
    rows, labeled, outputs = (results[name] for name in ("rows", "labeled", "classes"))
    score = task.describe_score(results["score"], labeled, outputs) if labeled else ""
    reporter.say(
        f"Wrote {artifact.path}: {rows:,} rows, {results['outputs']}{f'; teacher {score}' if score else ''}; "
        f"{size(artifact.path) / 1e6:,.1f} MB, {manifest.seconds:.1f} s"
    )
    if labeled and task.is_close_to_chance(results["score"], labeled, outputs):
        hint = "check that the logits are for these rows, in this order"
        if not settings.logits:
            raw = " (--teacher-input raw passes values from 0 to 255)" if dataset.input_dtype == "uint8" else ""
            hint = f"check that the teacher expects such inputs{raw}"
            if all(INPUTS[each.kind].is_function(each.name) for each in manifest.inputs_of("teacher")):
                hint = f"check what the function does with its inputs, {dataset.input_dtype} rows as in the dataset"
        reporter.warn(f"the teacher's accuracy on the labels is close to chance: {hint}")


def _warn_if_trained_on(manifest: Manifest, rows: Split, dataset: Dataset, reporter: Reporter) -> None:
    """Warn of an external teacher that is correct on all labeled rows, if some of them are training rows.

    A teacher of the workspace is not suspect: its logits, unlike rounded probabilities, differ between wrong classes.
    """
    score, count = manifest.results["score"], manifest.results["labeled"]
    if not count or not dataset.task.is_faultless(score, count):
        return
    labeled = rows.select(rows.labeled)
    if manifest.inputs_of("transfer_set") and not (positions(labeled.keys(), dataset.train.keys()) >= 0).any():
        return
    reporter.warn(
        f"the teacher is correct on all {count:,} labeled rows, so it was probably trained on them, and its "
        "logits add little to the labels: use out-of-fold logits (cross-validated predictions), or rows that it was not "
        "trained on (--transfer-set DATA)"
    )
