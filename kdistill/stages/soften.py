"""`kdistill soften`: a teacher and a transfer set to a soft-target file."""

from __future__ import annotations

import math
import time
from itertools import islice

from kdistill import data, freshness
from kdistill.console import Reporter
from kdistill.errors import KdistillError
from kdistill.settings import Soften
from kdistill.soft_targets import BlockLog, SoftTargets
from kdistill.stages import up_to_date
from kdistill.workspace import Artifact, Input, Manifest, Workspace

BLOCKS = "blocks.log"


def run(
    workspace: Workspace, settings: Soften = Soften(), *, force: bool = False, reporter: Reporter = Reporter()
) -> Manifest:
    """Run the teacher once over the transfer set, and keep what it says.

    Reads: `teachers/NAME/saved_model`, the dataset.
    Writes: `soft-targets/NAME.h5`.

    Raises:
        KdistillError: if there is no teacher, or the data doesn't fit it.
    """
    teacher = workspace.teacher(settings.teacher)
    taught = teacher.require()
    for reason in freshness.stale(workspace, taught):
        reporter.warn(f"{teacher} is stale, {reason}: {teacher.command_for(taught)}")
    source = data.resolve(settings.dataset or taught.inputs["dataset"].name)
    artifact = workspace.soft_targets(settings.name)
    identity = Manifest(
        kind="soft targets",
        settings={"temperature": settings.temperature, "batch_size": settings.batch_size},
        inputs={"dataset": source.identity(), "teacher": Input(teacher.name, taught.outputs["saved_model"])},
    )
    if up_to_date(artifact, _out_of_date(artifact, identity), force=force, reporter=reporter):
        return identity
    dataset = source.load()

    from kdistill import networks

    start = time.perf_counter()
    loaded, network = networks.load(teacher)
    if loaded != taught:
        raise KdistillError(f"{teacher} was made anew just now: run this again")
    network.check(dataset.input_shape, dataset.classes, dataset.name)
    transfer_set = dataset.train
    reporter.say(
        f"softens {len(transfer_set):,} rows of {dataset.name} with {teacher}: logits, and softmax(logits / T) at "
        f"T = {settings.temperature:g}"
    )
    with artifact.writing(keep=BLOCKS) as staging:
        log = BlockLog(staging.path / BLOCKS, identity, dataset.classes)
        if log.rows or log.restarted:
            reporter.say(
                f"goes on after row {log.rows:,}" if log.rows else "starts over: other settings were stopped here"
            )
        size = settings.batch_size
        with reporter.steps("soften", len(transfer_set)) as bar:
            bar.advance(log.rows)
            for block in islice(transfer_set.blocks(size), math.ceil(log.rows / size), None):
                log.append(data.row_keys(block), network.logits(block))
                bar.advance(len(block))
        file = staging.path / artifact.path.name
        manifest = log.write_file(
            file,
            identity,
            transfer_set.labels,
            temperature=settings.temperature,
            seconds=time.perf_counter() - start,
            teacher={"model": taught.results["model"], "parameters": taught.results["parameters"]},
        )
        log.close()
        staging.commit_file(file)
    rows, correct = manifest.results["rows"], manifest.results["correct"]
    reporter.say(
        f"wrote {artifact.path}: {rows:,} rows of {dataset.classes} classes, of which the teacher has {correct:,} right "
        f"({correct / rows:.2%}); {manifest.seconds:.1f} s"
    )
    which = "" if settings.name == Soften.name else f" --soft-targets {settings.name}"
    reporter.say(f"next: {workspace.student('student').command}{which} --alpha 0.1")
    return manifest


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
