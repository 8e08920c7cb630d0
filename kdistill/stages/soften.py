"""`kdistill soften`: teachers and a transfer set to a soft-target file."""

from __future__ import annotations

import math
import time
from pathlib import Path

from kdistill import data, soft_targets, teachers
from kdistill.console import Reporter
from kdistill.data import NO_LABEL, Dataset, Source, Split
from kdistill.data.keys import positions, row_keys
from kdistill.errors import KdistillError, UsageError
from kdistill.settings import Soften, TrainTeacher
from kdistill.soft_targets import SoftTargets, whole_transfer_set
from kdistill.soft_targets.storage import LogitStorage
from kdistill.stages import announce, up_to_date
from kdistill.stages.result import Result
from kdistill.teachers import ZERO_MASS, Candidate, LogitsSource
from kdistill.workspace import Artifact, Input, Manifest, Workspace, commands, digest, size
from kdistill.workspace import staleness as freshness
from kdistill.workspace.resume_log import BlockLog
from kdistill.workspace.unfinished import BLOCKS

EXTERNAL_OPTIONS = ("signature", "output", "teacher_output", "teacher_input")
CHANCE = 2.0  # a teacher that is right less than so many times as often as by chance is warned of


def run(
    workspace: Workspace, settings: Soften = Soften(), *, force: bool = False, reporter: Reporter = Reporter()
) -> Result:
    """Run the teachers once over the transfer set, and keep what they say.

    Reads: `teachers/NAME/saved_model` or networks from outside, or a file of logits; the dataset, the transfer sets.
    Writes: `soft-targets/NAME.h5`.

    Raises:
        KdistillError: if there is no such teacher, or the data doesn't fit it.
    """
    names = () if settings.logits else settings.teachers or (TrainTeacher.name,)
    asked = [teachers.find(workspace, name) for name in names]
    option = "dataset" if settings.data else None
    source = data.resolve(settings.data or _dataset_of(asked), option=option, cache=workspace.cache)
    at_hand = {source.identity().digest} if settings.data else ()
    for teacher in asked:
        if teacher.artifact and teacher.manifest:
            for reason in freshness.stale(workspace, teacher.manifest, at_hand):
                reporter.warn(
                    f"{teacher.artifact} is stale, {reason}: {teacher.artifact.command_for(teacher.manifest)}"
                )
    artifact = workspace.soft_targets(settings.name)
    identity = _identity(settings, asked, source)
    outdated = _out_of_date(artifact, identity)
    if up_to_date(artifact, identity, outdated, force=force, reporter=reporter):
        return Result(artifact, freshness.manifest_of(artifact) or identity)
    dataset = source.load()
    if settings.top_k is not None and settings.top_k >= dataset.classes:
        raise UsageError(f"--top-k {settings.top_k} is not below the {dataset.classes} classes of {dataset.name}")
    whole = whole_transfer_set(identity, dataset, workspace.cache)
    for warning in (*dataset.warnings, *whole.warnings):
        reporter.warn(warning)
    chosen = data.selected(whole, settings.selection, dataset, reporter=reporter)
    rows = whole.chosen(chosen)

    start = time.perf_counter()
    said: LogitsSource
    if settings.logits:
        said = spoken = teachers.read(Path(identity.inputs["logits"].name), settings, dataset, whole, chosen)
        reporter.say(spoken.order)
    else:
        said = teachers.load(asked, settings, dataset, rows)
    announce(artifact, outdated, reporter)
    _describe(identity, said, dataset, rows, reporter)
    known = dict.fromkeys(("model", "parameters"))
    if len(asked) == 1 and asked[0].manifest:
        known = {name: asked[0].manifest.results[name] for name in known}
    form = LogitStorage(dataset.classes, settings.temperature, settings.dtype, settings.top_k, settings.views)
    with artifact.writing(keep=BLOCKS) as staging:
        log = BlockLog(staging.path / BLOCKS, identity, {"row_keys": ((16,), "u1"), **form.columns}, len(rows))
        file = staging.path / artifact.path.name
        try:
            _ask(said, rows, log, form, settings.batch_size, " + ".join(soft_targets.teacher_names(identity)), reporter)
            manifest = soft_targets.write(
                file,
                log,
                identity,
                rows.labels,
                form,
                since=start,
                teacher={**known, "probabilities": list(said.probabilities)},
            )
        except KdistillError:  # the same command would be refused again, so there is nothing to resume
            log.path.unlink()
            raise
        finally:
            log.close()
        staging.commit_file(file)
    _report(artifact, manifest, settings, dataset, reporter)
    _warn_of_perfection(manifest, rows, dataset, reporter, outside=_is_outside(settings, asked))
    reporter.say(f"next: {commands.next_student(workspace.root, settings.name, manifest.results)}")
    return Result(artifact, manifest)


def _describe(identity: Manifest, said: LogitsSource, dataset: Dataset, rows: Split, reporter: Reporter) -> None:
    who = soft_targets.teacher_names(identity)
    for name, gives_probabilities in zip(who, said.probabilities, strict=True):
        if gives_probabilities:
            reporter.say(f"{name} gives probabilities: their logarithms are taken for logits")
    of = " + ".join(made.name for made in identity.made_from("transfer_set").values())
    labelled = "" if rows.labelled == len(rows) else f", {rows.labelled:,} of them labelled,"
    mean = f" ({identity.settings['mean']} mean)" if len(who) > 1 else ""
    how = identity.settings
    seen = f"{how['views']} views ({how['augment']}) of " if how["views"] else ""
    reporter.say(
        f"softens {seen}{len(rows):,} rows of {of or dataset.name}{labelled} with {' + '.join(who)}{mean}: logits, and "
        f"softmax(logits / T) at T = {identity.settings['temperature']:g}"
    )


def _ask(
    said: LogitsSource, rows: Split, log: BlockLog, form: LogitStorage, batch: int, who: str, reporter: Reporter
) -> None:
    """Fill the log, from where it ends."""
    if log.rows or log.restarted:
        reporter.say(f"goes on after row {log.rows:,}" if log.rows else "starts over: other settings were stopped here")
    with reporter.steps("soften", len(rows)) as bar:
        bar.advance(log.rows)
        for block, logits in said.of(rows, batch, skip=math.ceil(log.rows / batch)):
            stored = form.store(logits)
            stored.check(log.rows, who)
            log.append({"row_keys": row_keys(block), **stored.block()})
            bar.advance(len(block))
    if said.zeros.count:
        reporter.say(str(said.zeros))


def _dataset_of(asked: list[Candidate]) -> str:
    """The dataset that the teachers were trained on."""
    names = list(dict.fromkeys(t.manifest.inputs["dataset"].name for t in asked if t.manifest))
    if not names:
        raise UsageError("--dataset is missing: a teacher from outside doesn't say what data it is for")
    if len(names) > 1:
        raise UsageError(f"--dataset is missing: the teachers were trained on several, {' and '.join(names)}")
    return names[0]


def _is_outside(settings: Soften, asked: list[Candidate]) -> bool:
    """Whether any of the teachers is not the workspace's."""
    return settings.logits is not None or any(teacher.artifact is None for teacher in asked)


def _identity(settings: Soften, asked: list[Candidate], source: Source) -> Manifest:
    outside = _is_outside(settings, asked)
    inputs = {"dataset": source.identity()}
    for number, name in enumerate(settings.transfer_data, 1):
        inputs[f"transfer_set {number}"] = data.resolve(name, option="transfer-set").identity()
    for number, teacher in enumerate(asked, 1):
        inputs["teacher" if number == 1 else f"teacher {number}"] = teacher.made_from
    if settings.logits:
        path = Path(settings.logits).expanduser().absolute()
        if not path.exists():
            raise KdistillError(f"--logits {settings.logits}: there is no such file")
        if not path.is_file():  # reading a pipe or a device could wait forever
            raise KdistillError(
                f"--logits {settings.logits} is not a regular file (expected an .npy, .npz or .h5 file of logits)"
            )
        inputs["logits"] = Input(str(path), digest(path))
    recorded = settings.recorded() | {
        "zero_mass": ZERO_MASS if outside and settings.teacher_output != "logits" else None
    }
    if not outside:  # these options are for external teachers
        recorded |= {name: getattr(Soften, name) for name in EXTERNAL_OPTIONS}
    if len(asked) < 2:
        recorded["mean"] = None
    return Manifest(
        kind="soft targets",
        settings=recorded,
        inputs=inputs,
    )


def _report(artifact: Artifact, manifest: Manifest, settings: Soften, dataset: Dataset, reporter: Reporter) -> None:
    rows, labelled, correct = (manifest.results[name] for name in ("rows", "labelled", "correct"))
    right = (
        f", of which the teacher has {correct:,} of {labelled:,} right ({correct / labelled:.2%})" if labelled else ""
    )
    if labelled == rows:
        right = f", of which the teacher has {correct:,} right ({correct / rows:.2%})"
    reporter.say(
        f"wrote {artifact.path}: {rows:,} rows of {dataset.classes} classes{right}; "
        f"{size(artifact.path) / 1e6:,.1f} MB, {manifest.seconds:.1f} s"
    )
    if labelled and correct / labelled < min(CHANCE / dataset.classes, 0.5):
        outside = "is it for these rows, in this order?" if settings.logits else "does it expect other inputs?"
        scale = "" if settings.logits or dataset.input_dtype != "uint8" else " (--teacher-input raw gives it 0 to 255)"
        reporter.warn(f"the teacher is hardly better than chance on these labels: {outside}{scale}")


def _warn_of_perfection(
    manifest: Manifest, rows: Split, dataset: Dataset, reporter: Reporter, *, outside: bool
) -> None:
    """Warn of a teacher from outside that is right on every labelled row, if training rows are among those.

    The logits of a network that kdistill trained tell classes apart even there, since they are no rounded probabilities.
    """
    results = manifest.results
    if not outside or not results["labelled"] or results["correct"] < results["labelled"]:
        return
    labelled = rows.chosen(rows.labels != NO_LABEL)
    if manifest.made_from("transfer_set") and not (positions(labelled.keys(), dataset.train.keys()) >= 0).any():
        return
    reporter.warn(
        f"the teacher is right on all {results['labelled']:,} labelled rows, as one is that was trained on them; its logits "
        "then say little more than the labels: use out-of-fold logits (cross-validated predictions) or rows that it was "
        "not trained on (--transfer-set DATA)"
    )


def _out_of_date(artifact: Artifact, identity: Manifest) -> str | None:
    """Why the file must be written (again), in words; None if it is up to date."""
    try:
        standing = SoftTargets.open(artifact)
    except KdistillError as error:
        if artifact.path.is_dir():
            raise
        return str(error)
    if standing is None:
        return "not there yet"
    return "; ".join(standing.manifest.differences(identity)) or None
