"""What is drawn is what was measured, in the colours and lines that the README explains."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from kdistill import figures

EPOCHS = [1.0, 2.0, 3.0]


def curve(name, role, held_out="test"):
    return figures.Curve(
        name, role, held_out, EPOCHS, [0.5, 0.6, 0.7], [0.4, 0.5, 0.6], [2.0, 1.0, 0.5], [2.1, 1.1, 0.9]
    )


def test_learning_curves():
    """Accuracy left, loss right; teacher navy, student orange; training dashed, held-out solid."""
    figure = figures.learning_curves([curve("teacher", "teacher"), curve("student", "student")], "title")
    accuracy, loss = figure.axes
    drawn = {line.get_label(): line for line in accuracy.lines}
    assert set(drawn) == {"teacher, training", "teacher, test", "student, training", "student, test"}
    assert to_hex(drawn["teacher, test"].get_color()) == figures.NAVY
    assert to_hex(drawn["student, training"].get_color()) == figures.ORANGE
    assert drawn["teacher, training"].is_dashed()
    assert not drawn["teacher, test"].is_dashed()
    assert list(drawn["student, test"].get_ydata()) == [0.4, 0.5, 0.6]
    assert list(loss.lines[0].get_ydata()) == [2.0, 1.0, 0.5]
    assert list(accuracy.lines[0].get_xdata()) == EPOCHS


def test_many_networks_have_their_own_colours():
    curves = [curve(f"t{i}", "teacher") for i in range(3)] + [curve(f"s{i}", "student") for i in range(6)]
    figure = figures.learning_curves(curves, "title")
    colours = [to_hex(line.get_color()) for line in figure.axes[0].lines if not line.is_dashed()]
    assert len(set(colours)) == 9


def test_one_epoch_is_visible():
    one = figures.Curve("teacher", "teacher", "test", [1.0], [0.5], [0.4], [2.0], [2.1])
    assert figures.learning_curves([one], "t").axes[0].lines[0].get_marker() == "o"


@pytest.mark.parametrize("classes", [10, 100])
def test_dark_knowledge(classes):
    """Beside each input the bars are softmax(logits / T) at T = 1 and at the file's T, the true class in orange."""
    logits = np.random.default_rng(0).normal(0, 3, (2, classes))
    examples = [figures.Example(np.zeros((8, 8)), int(row.argmax()), row) for row in logits]
    names = [str(number) for number in range(classes)]
    figure = figures.dark_knowledge(examples, names, 5.0, "title")
    _, cold, warm = figure.axes[:3]
    for axes, temperature in ((cold, 1.0), (warm, 5.0)):
        expected = np.exp(logits[0] / temperature) / np.exp(logits[0] / temperature).sum()
        shown = [int(text.get_text()) for text in axes.get_xticklabels()]
        assert len(shown) == 10
        np.testing.assert_allclose([bar.get_height() for bar in axes.patches], expected[shown], rtol=1e-9)
        orange = [
            n for n, bar in zip(shown, axes.patches, strict=True) if to_hex(bar.get_facecolor()) == figures.ORANGE
        ]
        assert orange == [examples[0].label]


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_same_figure_same_bytes(tmp_path, ending):
    for name in ("one", "two"):
        figures.save(figures.learning_curves([curve("teacher", "teacher")], "t"), tmp_path / f"{name}.{ending}")
    one = (tmp_path / f"one.{ending}").read_bytes()
    assert len(one) > 5000
    assert one == (tmp_path / f"two.{ending}").read_bytes()
