"""Offline knowledge distillation on TensorFlow and Keras 3.

The stages of the command line as functions, with their settings, and the objective for Keras's `compile` and `fit`. A
name is imported when it is first used, so `import kdistill` is fast; TensorFlow is imported with what computes.
"""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False  # as in `typing`, whose import takes longer than everything else here
if TYPE_CHECKING:
    from kdistill.console import Reporter
    from kdistill.data import load as load_dataset
    from kdistill.data.keys import row_keys
    from kdistill.errors import KdistillError
    from kdistill.settings import (
        Cluster,
        CorrectBias,
        Evaluate,
        Export,
        Objective,
        Plot,
        Predict,
        Promote,
        ReadOptions,
        Report,
        Run,
        Selection,
        Soften,
        Status,
        Sweep,
        Tracking,
        Training,
        TrainStudent,
        TrainTeacher,
        Verify,
    )
    from kdistill.soft_targets import SoftTargets
    from kdistill.stages.correct_bias import run as correct_bias
    from kdistill.stages.evaluate import run as evaluate
    from kdistill.stages.export import run as export
    from kdistill.stages.plot import run as plot
    from kdistill.stages.predict import run as predict
    from kdistill.stages.promote import run as promote
    from kdistill.stages.report import run as report
    from kdistill.stages.run import run
    from kdistill.stages.soften import run as soften
    from kdistill.stages.status import run as status
    from kdistill.stages.sweep import run as sweep
    from kdistill.stages.train_student import run as train_student
    from kdistill.stages.train_teacher import run as train_teacher
    from kdistill.stages.verify import run as verify
    from kdistill.training.losses import DistillationLoss, distillation_loss
    from kdistill.training.losses.classification import hard_loss, soft_loss
    from kdistill.workspace import Workspace

__version__ = "0.1.0"

UNSUPPORTED = "kdistill runs on Linux and macOS; on Windows, use the Windows Subsystem for Linux (WSL)"

STAGES = (
    *("correct_bias", "evaluate", "export", "plot", "predict", "promote", "report", "run", "soften", "status"),
    *("sweep", "train_student", "train_teacher", "verify"),
)
_PLACES = {stage: f"kdistill.stages.{stage}:run" for stage in STAGES} | {
    "DistillationLoss": "kdistill.training.losses:DistillationLoss",
    "KdistillError": "kdistill.errors:KdistillError",
    "Reporter": "kdistill.console:Reporter",
    "SoftTargets": "kdistill.soft_targets:SoftTargets",
    "Workspace": "kdistill.workspace:Workspace",
    "distillation_loss": "kdistill.training.losses:distillation_loss",
    "hard_loss": "kdistill.training.losses.classification:hard_loss",
    "load_dataset": "kdistill.data:load",
    "row_keys": "kdistill.data.keys:row_keys",
    "soft_loss": "kdistill.training.losses.classification:soft_loss",
}

__all__ = [
    "Cluster",
    "CorrectBias",
    "DistillationLoss",
    "Evaluate",
    "Export",
    "KdistillError",
    "Objective",
    "Plot",
    "Predict",
    "Promote",
    "ReadOptions",
    "Report",
    "Reporter",
    "Run",
    "Selection",
    "SoftTargets",
    "Soften",
    "Status",
    "Sweep",
    "Tracking",
    "TrainStudent",
    "TrainTeacher",
    "Training",
    "Verify",
    "Workspace",
    "correct_bias",
    "distillation_loss",
    "evaluate",
    "export",
    "hard_loss",
    "load_dataset",
    "plot",
    "predict",
    "promote",
    "report",
    "row_keys",
    "run",
    "soft_loss",
    "soften",
    "status",
    "sweep",
    "train_student",
    "train_teacher",
    "verify",
]

if not TYPE_CHECKING:  # type checkers read the imports above

    def __getattr__(name: str) -> object:
        """Import a public name from its module, or else a settings class."""
        if name not in __all__:
            raise AttributeError(f"module 'kdistill' has no attribute {name!r}")
        if sys.platform == "win32":  # no fcntl
            raise ImportError(UNSUPPORTED)
        module, _, own_name = _PLACES.get(name, f"kdistill.settings:{name}").partition(":")
        return getattr(importlib.import_module(module), own_name)

    def __dir__() -> list[str]:
        return [*__all__, "__version__"]
