"""What a task answers: the interface between the tasks and the rest of the package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdistill.console import NumberFormat
from kdistill.errors import UsageError
from kdistill.settings import uses_temperature
from kdistill.tasks.labels import RawLabels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.floating[Any]]
Measures = dict[str, float | int]


@dataclass(frozen=True)
class Vocabulary:
    """What the labels of a dataset can be.

    Attributes:
        size: the number of classes, or of numbers per row.
        names: of the classes or numbers; empty if the data does not name them.
        warnings: lines for the user.
    """

    size: int
    names: Sequence[str] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Headline:
    """The measure that networks are compared by.

    Attributes:
        measure: its key in the measures of a task.
        label: its name in tables and figures.
        number_format: of a value.
        mean_format: of a mean over several networks.
        lower_is_better: whether a lower value is better.
    """

    measure: str
    label: str
    number_format: NumberFormat
    mean_format: NumberFormat
    lower_is_better: bool = True

    def __call__(self, value: float) -> str:
        """Return a value as it is printed."""
        return self.number_format(value)


@dataclass(frozen=True)
class Column:
    """A column of the table that `evaluate` prints: its head, the key of its measure, and the format of a value."""

    head: str
    measure: str
    number_format: NumberFormat

    def __call__(self, value: float) -> str:
        """Return a value as it is printed."""
        return self.number_format(value)


@dataclass(frozen=True)
class Prediction:
    """One thing that a network predicts for some rows.

    Attributes:
        name: e.g. `class`.
        values: (rows,) texts as objects, or (rows, values) numbers; (rows,) for one number per row.
        names: of the values of a row; empty if these are not named.
    """

    name: str
    values: NDArray[Any]
    names: Sequence[str] = ()


class Task(ABC):
    """A kind of outcome.

    `outputs` are (rows, outputs) float32: what networks and soft-target files hold. `labels` are an array whose first axis
    is the rows, of the type and shape that `label_type` says; rows without a label hold `NO_LABEL` or NaN.

    Attributes:
        name: a key of `settings.TASKS`.
        loss_title: the title of the loss in figures: of the hard part, or of the soft part if there is no hard part.
        metric: the measure that is printed after each epoch, a function in the task's module of losses.
        headline: the measure that networks are compared by.
        columns: of the table that `evaluate` prints.
        gap: the measure whose gap between training and test rows `evaluate` prints, a fraction; None for none.
        needs_labels: whether a dataset without labels is refused. If not, the teacher defines the number of outputs.
        categorical: whether outputs are the logits of one distribution over classes: soft targets can then be cut to the
            largest logits, probabilities are calibrated or not, and biases can be corrected.
        picture: the name of the picture of a teacher's outputs.
        shows_rows: whether this picture shows single rows (`figures.dark_knowledge`). If not, `draw` returns it.
        output: the name of the output of a network.
        unit: what messages call one of the outputs, e.g. `class`.
        closeness: how close the outputs of a network are to those of another one, e.g. of its teacher.
        note: explains the columns.
        hub_tasks: what the Hugging Face Hub calls the task, by the kind of data: `table` or `image`.
    """

    name: ClassVar[str]
    loss_title: ClassVar[str]
    metric: ClassVar[str]
    headline: ClassVar[Headline]
    columns: ClassVar[Sequence[Column]]
    closeness: ClassVar[Column]
    gap: ClassVar[str | None] = None
    needs_labels: ClassVar[bool] = True
    categorical: ClassVar[bool] = False
    picture: ClassVar[str]
    shows_rows: ClassVar[bool] = False
    output: ClassVar[str] = "logits"
    unit: ClassVar[str] = "class"
    note: ClassVar[str] = ""
    hub_tasks: ClassVar[Mapping[str, str]] = {}

    def count(self, outputs: int) -> str:
        """Return a number of outputs in words, e.g. `10 classes`."""
        return f"{outputs:,} {self.unit if outputs == 1 else self.plural}"

    @property
    def uses_temperature(self) -> bool:
        """Whether the default loss depends on T."""
        return uses_temperature(self.name)

    @property
    def plural(self) -> str:
        """What messages call several outputs."""
        return f"{self.unit}{'es' if self.unit.endswith('s') else 's'}"

    # Labels

    def fits(self, labels: RawLabels) -> bool:
        """Return whether labels are clearly those of this task, if `--task` is not given."""
        return False

    @abstractmethod
    def read_labels(
        self, train: RawLabels, test: RawLabels | None, class_names: Sequence[str]
    ) -> tuple[Vocabulary, NDArray[Any], NDArray[Any] | None]:
        """Return what the labels of a dataset can be, and those of its training and test rows, as `encode` does.

        Args:
            train: of the training rows, which decide what the labels can be.
            test: of the test rows; None if the data lacks test rows.
            class_names: empty if the data does not name the classes.

        Raises:
            KdistillError: if these are not labels of the task.
        """

    @abstractmethod
    def encode(self, labels: RawLabels, vocabulary: Vocabulary) -> NDArray[Any]:
        """Return labels as numbers, (rows, ...).

        Raises:
            KdistillError: if a label is not in the vocabulary.
        """

    @abstractmethod
    def label_type(self, outputs: int) -> tuple[tuple[int, ...], str]:
        """Return the shape and type of a row's label in a soft-target file, for a number of outputs."""

    @abstractmethod
    def groups(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the group of each row, (rows,): rows of a group have alike labels.

        `--fraction` keeps the fraction in each group, and `--permute-soft-targets` permutes within each group.
        """

    def balanced_weights(self, labels: NDArray[Any]) -> NDArray[np.float32]:
        """Return weights (rows,) that give all classes the same total; 1 for rows without a label.

        Raises:
            UsageError: if labels of the task are not classes.
        """
        raise UsageError(f"--class-weights balanced does not apply to the task {self.name}: remove it")

    # Teachers and soft targets

    def are_probabilities(self, outputs: Floats) -> bool:
        """Return whether outputs (rows, outputs) of a teacher are probabilities, and not logits."""
        return False

    def from_probabilities(self, probabilities: Floats, zero_mass: float) -> Floats:
        """Return logits with these probabilities (rows, outputs). Those that are exactly 0 share at most `zero_mass`."""
        raise NotImplementedError

    def average(self, outputs: Sequence[Floats], temperature: float) -> Floats:
        """Return the mean of several teachers' outputs: if they are logits, those of the mean probabilities at T."""
        return np.asarray(np.mean(outputs, axis=0, dtype=np.float64), np.float32)

    def activation(self, outputs: Floats, temperature: float) -> Floats | None:
        """Return the soft targets of outputs (rows, ..., outputs) at a temperature; None if the outputs are the targets."""
        return None

    @abstractmethod
    def predict(self, outputs: Floats) -> NDArray[Any]:
        """Return what outputs (rows, outputs) predict, (rows, ...), in the form of the labels."""

    @abstractmethod
    def describe_predictions(
        self, outputs: Floats, names: Sequence[str], *, probabilities: bool = False
    ) -> Sequence[Prediction]:
        """Return what outputs (rows, outputs) predict, for people and other programs.

        Args:
            outputs: of a network.
            names: of the classes or numbers, as in the vocabulary.
            probabilities: whether to add the probability of each class, if there are classes.
        """

    @abstractmethod
    def score(self, predictions: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
        """Return how good predictions are, (rows,); 0 for rows without a label.

        The sum is recorded with the soft targets. Another sum when rows are matched again shows that labels have changed.
        """

    @abstractmethod
    def describe_score(self, score: float, labeled: int, outputs: int) -> str:
        """Return how good a teacher is, as a phrase, from the sum of its scores over the labeled rows."""

    def is_close_to_chance(self, score: float, labeled: int, outputs: int) -> bool:
        """Return whether a teacher is hardly better than guessing, as far as the sum of its scores tells."""
        return False

    def is_faultless(self, score: float, labeled: int) -> bool:
        """Return whether a teacher is right on all labeled rows, as if it had learned them by heart."""
        return False

    def draw(self, outputs: Floats, labels: NDArray[Any], names: Sequence[str], title: str) -> Figure | None:
        """Return the picture of a teacher's outputs; None if it needs labels and there are none.

        Args:
            outputs: (rows, outputs).
            labels: of the rows.
            names: of the classes or numbers.
            title: of the picture.
        """
        raise NotImplementedError

    # Measures

    @abstractmethod
    def measure(
        self, outputs: Iterable[Floats], labels: NDArray[Any], teacher_outputs: Iterable[Floats] | None = None
    ) -> Measures:
        """Return the measures of a network.

        Args:
            outputs: in blocks of rows.
            labels: of all rows.
            teacher_outputs: in the same blocks; None if there is no teacher to compare with.
        """

    def per_class(self, outputs: Floats, labels: NDArray[Any], names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the measures of each class, by the head of their column; an empty list if there are no classes.

        Args:
            outputs: of all rows.
            labels: of all rows.
            names: of the classes.
        """
        return []

    @abstractmethod
    def describe(self, measures: Mapping[str, Any], rows: int, split: str = "test") -> str:
        """Return how good a network is on some rows, as a phrase."""

    def probe(
        self,
        train_outputs: Iterable[Floats],
        train_labels: NDArray[Any],
        outputs: Iterable[Floats],
        labels: NDArray[Any],
    ) -> Measures:
        """Return measures of a network on some rows that need its outputs of the training rows too."""
        return {}

    def rescaling(self, labels: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return offset and scale (outputs,) of the outputs of a network, from the training labels; None for 0 and 1."""
        return None
