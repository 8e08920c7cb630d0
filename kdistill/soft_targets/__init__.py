"""Soft targets: the file of a teacher's logits, how they are stored, and how rows find theirs.

What feeds Keras's `fit` is in `kdistill.soft_targets.keras_dataset`, which imports TensorFlow.
"""

from kdistill.soft_targets.alignment import AlignedSoftTargets, align
from kdistill.soft_targets.file import SoftTargets
from kdistill.soft_targets.storage import Logits, LogitStorage
from kdistill.soft_targets.transfer_sets import full_transfer_set, teacher_names, transfer_set, transfer_sources
from kdistill.soft_targets.writer import write

__all__ = [
    "AlignedSoftTargets",
    "LogitStorage",
    "Logits",
    "SoftTargets",
    "align",
    "full_transfer_set",
    "teacher_names",
    "transfer_set",
    "transfer_sources",
    "write",
]
