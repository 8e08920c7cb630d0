"""Tasks: the kinds of outcome that a dataset can have. Each is one module here, and one of losses in `training.losses`.

The rest of the package asks the task of a dataset how labels are read, stored and compared, how outputs are measured, and
what is drawn. The names of the tasks are in `settings.TASKS`.
"""

from kdistill.tasks.labels import NO_LABEL, RawLabels, as_string, is_labeled, is_text
from kdistill.tasks.registry import choose, get
from kdistill.tasks.task import Column, Headline, Measures, Prediction, Task, Vocabulary

__all__ = [
    "NO_LABEL",
    "Column",
    "Headline",
    "Measures",
    "Prediction",
    "RawLabels",
    "Task",
    "Vocabulary",
    "as_string",
    "choose",
    "get",
    "is_labeled",
    "is_text",
]
