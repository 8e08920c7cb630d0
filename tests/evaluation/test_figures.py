"""What is drawn is what was measured, in the colors and lines that the guide on evaluation explains."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from kdistill.evaluation import figures

EPOCHS = [1.0, 2.0, 3.0]


def curve(name, role, held_out="test"):
    return figures.Curve(
        name, role, held_out, "accuracy", EPOCHS, [0.5, 0.6, 0.7], [0.4, 0.5, 0.6], [2.0, 1.0, 0.5], [2.1, 1.1, 0.9]
    )


def test_learning_curves():
    """Accuracy left, loss right; teacher navy, student orange; training dashed, held-out solid."""
    figure = figures.learning_curves([curve("teacher", "teacher"), curve("student", "student")], "title", "loss")
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


def test_many_networks_have_their_own_colors():
    curves = [curve(f"t{i}", "teacher") for i in range(3)] + [curve(f"s{i}", "student") for i in range(6)]
    figure = figures.learning_curves(curves, "title", "loss")
    colors = [to_hex(line.get_color()) for line in figure.axes[0].lines if not line.is_dashed()]
    assert len(set(colors)) == 9


def test_one_epoch_is_visible():
    one = figures.Curve("teacher", "teacher", "test", "accuracy", [1.0], [0.5], [0.4], [2.0], [2.1])
    assert figures.learning_curves([one], "t", "loss").axes[0].lines[0].get_marker() == "o"


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


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_same_figure_same_bytes(tmp_path, ending):
    for name in ("one", "two"):
        figures.save(figures.learning_curves([curve("teacher", "teacher")], "t", "loss"), tmp_path / f"{name}.{ending}")
    one = (tmp_path / f"one.{ending}").read_bytes()
    assert len(one) > 5000
    assert one == (tmp_path / f"two.{ending}").read_bytes()


@pytest.mark.parametrize("networks", [2, 6, 12])
def test_legend_lies_within_the_figure(networks):
    """An entry per network and two for the line styles, all of it inside the figure and clear of title and axes."""
    curves = [curve(f"network-{'long' * 12}-{number}", "student") for number in range(networks)]
    figure = figures.learning_curves(curves, "datasets, " * 40, "loss")
    figure.draw_without_rendering()
    legend = figure.legends[0]
    assert len(legend.get_texts()) == networks + 2
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 <= figure.bbox.y1
    assert not any(box.overlaps(other.get_tightbbox()) for other in figure.axes)
    assert not box.overlaps(figure._suptitle.get_window_extent())
    shown = [text.get_text() for text in legend.get_texts()]
    assert len(set(shown)) == networks + 2
    assert max(map(len, shown)) <= figures.NAME + len(" (student)")
    looks = {(to_hex(line.get_color()), line.get_marker()) for line in legend.get_lines()[:networks]}
    assert len(looks) == networks


def test_accuracy_axis_ends_where_the_curves_do():
    """Low accuracies do not leave most of the axis empty; high ones keep 100% in sight."""
    low, high = figures.learning_curves([curve("a", "student")], "t", "loss").axes[0].get_ylim()
    assert low < 0.4
    assert 0.7 < high < 0.8
    near = figures.Curve(
        "a", "student", "test", "accuracy", EPOCHS, [0.9, 0.99, 0.999], [0.9, 0.95, 0.97], [1.0] * 3, [1.0] * 3
    )
    assert 1.0 < figures.learning_curves([near], "t", "loss").axes[0].get_ylim()[1] < 1.01


def test_band_of_hard_labels():
    """A band of one standard deviation around the dashed line, inside the axis."""
    axes = figures.errors_over(
        "T", [figures.Line("a", [1.0, 4.0], [5.0, 6.0], [1.0, 1.0], 9.0, 2.5)], "errors", "t"
    ).axes[0]
    band = axes.patches[0].get_path().get_extents(axes.patches[0].get_patch_transform())
    assert (band.y0, band.y1) == pytest.approx((6.5, 11.5))
    assert axes.get_ylim()[1] > 11.5


def test_long_class_names_are_shortened():
    figure = figures.dark_knowledge([figures.Example(None, 0, np.zeros(2))], ["n" * 40, "p"], 2.0, "t")
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["n" * 10 + "…" + "n" * 9, "p"]


def test_lines():
    """Each model has a line through its means, and a dashed line of the same color for its hard labels."""
    lines = [figures.Line(name, [1.0, 4.0], [5.0, number], [1.0, 0.5], 6.0) for number, name in enumerate("ab")]
    axes = figures.errors_over("T", [*lines, figures.Line("c", [None], [3.0], [0.2], None)], "errors", "title").axes[0]
    dashed = [line for line in axes.lines if line.is_dashed()]
    assert [line.get_ydata()[0] for line in dashed] == [6.0] * 2
    drawn = {bars.get_label(): bars.lines[0] for bars in axes.containers}
    assert list(drawn["b"].get_ydata()) == [5.0, 1.0]
    assert to_hex(drawn["a"].get_color()) == to_hex(dashed[0].get_color()) != to_hex(dashed[1].get_color())
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "4"]


@pytest.mark.parametrize(("large", "scale"), [(330.0, "log"), (200.0, "linear")])
def test_lines_far_apart(large, scale):
    """The axis is logarithmic if one network makes many times the errors of another, and shows all of both."""
    lines = [figures.Line("a", [1.0, 4.0], [large, large], [9.0, 8.0], 80.0)]
    lines.append(figures.Line("b", [1.0, 4.0], [100.0, 90.0], [4.0, 3.0], 130.0))
    axes = figures.errors_over("T", lines, "errors", "title").axes[0]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low < 80.0
    assert high > large + 9.0


def test_heat_map():
    """Each cell shows its mean difference, and the best one has a frame."""
    heat = figures.HeatMap(
        "m", ["1", "1", "2", "2"], ["0.1", "0.5"] * 2, [-2.0, 1.0, 0.0, 3.0], [False, True, False, False]
    )
    axes = figures.heat_maps([heat], "title").axes[0]
    cells = {(text.get_position()): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "-2.0", (0, 1): "+1.0", (1, 0): "+0.0", (1, 1): "+3.0"}
    assert np.asarray(axes.images[0].get_array()).tolist() == [[-2.0, 0.0], [1.0, 3.0]]
    frame = axes.patches[0]
    assert (frame.get_x() + 0.47, frame.get_y() + 0.47) == pytest.approx((0, 1))
