"""Settings: every option of every command, declared once.

`options` has the mechanism, `checks` the conditions on values, `catalog` the names that options can take, `groups` the
options that commands share, and `distill`, `sweep` and `inspect` a dataclass per command. Standard library only.
"""

from kdistill.settings.catalog import (
    CLASSIFICATION,
    DATA_FORMATS,
    EMBEDDING,
    FUNCTION_NAME,
    LOSSES,
    MULTI_LABEL,
    NETWORKS,
    PREDICTION_FILES,
    REGRESSION,
    TASKS,
    built_in,
    default_loss,
    parse_augment,
    uses_temperature,
)
from kdistill.settings.checks import (
    NAME,
    format_value,
    parse_dropout,
    parse_frequencies,
    parse_image_size,
    parse_schedule,
    split_list,
)
from kdistill.settings.distill import Run, Soften, TrainStudent, TrainTeacher
from kdistill.settings.groups import ALL_DEVICES, MAX_PIXELS, ReadOptions, Selection, Training
from kdistill.settings.inspect import CorrectBias, Evaluate, Export, Plot, Predict, Report, Status, Verify
from kdistill.settings.objective import TEMPERATURES, Objective
from kdistill.settings.options import (
    Field,
    Only,
    Option,
    Settings,
    build,
    check_value,
    command_words,
    option,
    options_of,
)
from kdistill.settings.shared import NEW_WEIGHTS, Cluster, Tracking, TrainingCluster
from kdistill.settings.sweep import Promote, Sweep

COMMANDS: dict[str, type[Settings]] = {
    "train-teacher": TrainTeacher,
    "soften": Soften,
    "train-student": TrainStudent,
    "sweep": Sweep,
    "promote": Promote,
    "plot": Plot,
    "report": Report,
    "evaluate": Evaluate,
    "export": Export,
    "predict": Predict,
    "correct-bias": CorrectBias,
    "status": Status,
    "verify": Verify,
    "run": Run,
}

__all__ = [
    "ALL_DEVICES",
    "CLASSIFICATION",
    "COMMANDS",
    "DATA_FORMATS",
    "EMBEDDING",
    "FUNCTION_NAME",
    "LOSSES",
    "MAX_PIXELS",
    "MULTI_LABEL",
    "NAME",
    "NETWORKS",
    "NEW_WEIGHTS",
    "PREDICTION_FILES",
    "REGRESSION",
    "TASKS",
    "TEMPERATURES",
    "Cluster",
    "CorrectBias",
    "Evaluate",
    "Export",
    "Field",
    "Objective",
    "Only",
    "Option",
    "Plot",
    "Predict",
    "Promote",
    "ReadOptions",
    "Report",
    "Run",
    "Selection",
    "Settings",
    "Soften",
    "Status",
    "Sweep",
    "Tracking",
    "TrainStudent",
    "TrainTeacher",
    "Training",
    "TrainingCluster",
    "Verify",
    "build",
    "built_in",
    "check_value",
    "command_words",
    "default_loss",
    "format_value",
    "option",
    "options_of",
    "parse_augment",
    "parse_dropout",
    "parse_frequencies",
    "parse_image_size",
    "parse_schedule",
    "split_list",
    "uses_temperature",
]
