"""`kdistill report`: one HTML file about a distilled student, to show to others.

`stage` finds what to report and writes the file, `subject` chooses the networks to compare, and `page` puts the sections
together. `general` has the sections that all tasks have. `task_report` has what depends on the task, and the modules with the
names of the tasks extend it, with `diagrams` and `changes`. `html` builds elements and escapes all text.
"""

from kdistill.stages.report.stage import run

__all__ = ["run"]
