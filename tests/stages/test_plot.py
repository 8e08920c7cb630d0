"""`plot`: the rows of the soft targets that it shows, and how their inputs are described."""

from __future__ import annotations

import numpy as np
import pytest

from kdistill.evaluation import figures
from kdistill.stages.dark_knowledge import describe_input, select_rows


class FakeSoftTargets:
    """Soft targets whose logits are in memory."""

    def __init__(self, probabilities):
        self.logits = np.log(np.asarray(probabilities))

    def __len__(self):
        return len(self.logits)

    def at(self, rows):
        return type("Logits", (), {"dense": lambda _: self.logits[rows]})()


@pytest.mark.parametrize(
    ("probabilities", "labels", "rows"),
    [
        pytest.param([[0.6, 0.21, 0.19], [0.7, 0.28, 0.02], [0.4, 0.3, 0.3]], [0, 0, 0], [1], id="clear second class"),
        pytest.param([[0.7, 0.28, 0.02], [0.9, 0.06, 0.04]], [1, 0], [1], id="correct row first"),
        pytest.param([[0.7, 0.28, 0.02], [0.9, 0.06, 0.04]], [-1, -1], [0], id="unlabeled"),
        pytest.param([[0.999, 0.0009, 0.0001], [0.99, 0.009, 0.001]], [0, 0], [1], id="all certain: the least certain"),
        pytest.param([[0.52, 0.48], [0.7, 0.3], [0.95, 0.05]], [0, 0, 0], [1], id="two classes"),
        pytest.param([[0.7, 0.28, 0.02]], [2], [0], id="all wrong"),
    ],
)
def test_selected_rows(probabilities, labels, rows):
    """The row of a class that shows its dark knowledge best is selected."""
    assert select_rows(FakeSoftTargets(probabilities), np.asarray(labels)) == rows


def test_inputs_that_are_not_images():
    """A table row shows the values that deviate most, a token row its first ids without padding; both are drawn."""
    lines = describe_input(np.asarray([0.1, -2.0, 1.0], np.float32), ["a", "b", "c"])
    assert lines == ["b -2.0 sd", "c +1.0 sd", "a +0.1 sd"]
    assert describe_input(np.asarray([0, 0, 7, 8, 0]), ()) == ["7 8"]
    figure = figures.dark_knowledge([figures.Example(None, 0, np.zeros(2), lines)], ["n", "p"], 2.0, "t")
    assert figure.axes[0].texts[0].get_text() == "\n".join(lines)
