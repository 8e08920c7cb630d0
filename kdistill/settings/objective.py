"""The options of the objective that training minimizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from kdistill.errors import UsageError
from kdistill.settings.catalog import CLASSIFICATION, LOSSES, TASKS, default_loss
from kdistill.settings.checks import fraction, number, one_of
from kdistill.settings.options import Settings, option

TEMPERATURES = (0.01, 10_000.0)  # beyond these, a float32 softmax is an arg max or a constant
LOSS_HELP = "; ".join(f"{name}: {loss.help}" for name, loss in LOSSES.items())
DEFAULT_LOSSES = ", ".join(
    f"{name} for {' and '.join(task for task in TASKS if default_loss(task) == name)}"
    for name in dict.fromkeys(map(default_loss, TASKS))
)


@dataclass(frozen=True, kw_only=True)
class Objective(Settings):
    """What training minimizes: `alpha * hard part + (1 - alpha) * soft part`, averaged over a batch.

    A temperature of None is the temperature of the soft-target file.
    """

    alpha: Annotated[
        float,
        option(
            "Weight of the hard labels in alpha * CE(labels) + (1 - alpha) * T^2 * KL(soft targets). With 1, the student "
            "learns from hard labels only.",
            number(0, 1),
            "Objective",
        ),
    ] = 0.1
    temperature: Annotated[
        float | None,
        option(
            "Temperature T of softmax(logits / T). Default: the temperature of the soft-target file.",
            number(*TEMPERATURES),
            "Objective",
            metavar="T",
        ),
    ] = None
    loss: Annotated[
        str | None,
        option(
            f"Loss of the soft part. {LOSS_HELP}. Default: {DEFAULT_LOSSES}.",
            one_of(*LOSSES),
            "Objective",
            metavar="LOSS",
        ),
    ] = None
    standardize_logits: Annotated[
        bool, option("Match the z-scores of each row's logits. T then divides the z-scores.", group="Objective")
    ] = False
    label_smoothing: Annotated[
        float | None,
        option(
            "Smooth the hard labels: (1 - EPS) for the label plus EPS / classes for every class.",
            fraction(),
            "Regularization",
            metavar="EPS",
        ),
    ] = None

    def check_combinations(self) -> None:
        if self.alpha == 1:
            for name in ("loss", "standardize_logits", "temperature"):
                if getattr(self, name) != getattr(Objective, name):
                    flag = f"--{name.replace('_', '-')}"
                    raise UsageError(
                        f"{flag} has no effect with --alpha 1 (hard labels only): remove {flag}, or lower --alpha"
                    )
        if self.temperature is not None and self.loss is not None and not LOSSES[self.loss].temperature:
            raise UsageError(f"--temperature has no effect with --loss {self.loss}: remove it")
        if self.alpha == 0 and self.label_smoothing is not None:
            raise UsageError(
                "--label-smoothing has no effect with --alpha 0 (soft targets only): remove it, or raise --alpha"
            )

    @property
    def hard(self) -> Objective:
        """The objective that uses hard labels only, with the same label smoothing."""
        return Objective(alpha=1.0, label_smoothing=self.label_smoothing)

    def for_task(self, task: str) -> Objective:
        """Return the objective of a task: with the task's loss by default, and alpha 0 if the task has no hard part.

        Raises:
            UsageError: if an option does not apply to the task.
        """
        for name in ("standardize_logits", "label_smoothing"):
            if task != CLASSIFICATION and getattr(self, name):
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} does not apply to the task {task}: remove {flag}")
        if self.alpha == 1:
            if not TASKS[task].hard_part:
                raise UsageError(
                    f"--alpha 1 does not apply to the task {task}, which has no hard labels: use --alpha 0"
                )
            return self
        loss = self.loss or default_loss(task)
        if task not in LOSSES[loss].formulas:
            names = ", ".join(name for name, each in LOSSES.items() if task in each.formulas)
            raise UsageError(f"--loss {loss} does not apply to the task {task} (expected {names})")
        return replace(self, loss=loss, alpha=self.alpha if TASKS[task].hard_part else 0.0)

    def formula(self, task: str) -> str:
        """Return the formula with its numbers, of an objective that `for_task` returned."""
        labels = f"labels smoothed by {self.label_smoothing:g}" if self.label_smoothing else "labels"
        hard = f"{TASKS[task].hard_part}({labels})"
        if self.alpha == 1 or self.loss is None:
            return hard
        loss = LOSSES[self.loss]
        temperature = f", T = {self.temperature:g}" if loss.temperature and self.temperature else ""
        standardized = ", logits standardized" if self.standardize_logits else ""
        soft = f"{loss.formulas[task]}{temperature}{standardized}"
        return f"{self.alpha:g} * {hard} + {1 - self.alpha:.6g} * {soft}" if TASKS[task].hard_part else soft
