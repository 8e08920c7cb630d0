"""What soften computes for a block of rows, in its own process or in a worker."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kdistill import data, soft_targets, teachers
from kdistill.data import Split
from kdistill.data.keys import row_keys
from kdistill.data.read_ahead import TwoSteps, blocks_at_once
from kdistill.data.rows import NumberedBlocks
from kdistill.settings import Soften
from kdistill.soft_targets import LogitStorage
from kdistill.stages.inputs import require_inputs
from kdistill.teachers import Ensemble, PrecomputedLogits, RowBlock, ZeroCount
from kdistill.workspace import Manifest, Workspace
from kdistill.workspace.resume_log import Block


class SoftBlock(NamedTuple):
    """The row keys and the stored logits of a block, and how many probabilities were 0."""

    rows: Block
    zeros: ZeroCount


def block_function(
    teacher: Ensemble | PrecomputedLogits, split: Split, storage: LogitStorage, batch_size: int, names: str
) -> TwoSteps[SoftBlock]:
    """Return a function that runs a teacher on a block of a transfer set, by the number of the block.

    Args:
        teacher: one or several, or stored logits.
        split: the transfer set.
        storage: how logits are stored.
        batch_size: rows per block.
        names: of the teachers, for messages.
    """
    blocks, logits = NumberedBlocks(split.inputs, batch_size), teacher.of_blocks(batch_size)

    def read(number: int) -> RowBlock:
        inputs = blocks[number]
        return RowBlock(number, number * batch_size, inputs, row_keys(inputs))

    def compute(block: RowBlock) -> SoftBlock:
        stored = storage.store(logits(block))
        stored.check(names, block.first_row)
        return SoftBlock({"row_keys": block.keys, **stored.arrays()}, teacher.zeros.take())

    return TwoSteps(read, compute, blocks_at_once(split.inputs.shape[1:], batch_size, parallel=teacher.parallel))


def prepare(root: Path, settings: Soften, identity: Manifest, storage: LogitStorage) -> TwoSteps[SoftBlock]:
    """Return the same function in a worker, which opens the data and the teachers itself.

    Images are decoded for each block and not cached, so that each worker decodes only its own.

    Args:
        root: the workspace.
        settings: of soften.
        identity: names the data and the teachers.
        storage: how logits are stored.

    Raises:
        KdistillError: if this machine has other data or teachers.
    """
    workspace = Workspace(root)
    require_inputs(workspace, identity)
    dataset = data.resolve(identity.require_input("dataset").name).load()
    split = soft_targets.transfer_set(identity, dataset)
    members = [teachers.find_teacher(workspace, each.name) for each in identity.inputs_of("teacher")]
    teacher = teachers.load_ensemble(members, settings, dataset, split)
    names = " + ".join(soft_targets.teacher_names(identity))
    return block_function(teacher, split, storage, settings.batch_size, names)
