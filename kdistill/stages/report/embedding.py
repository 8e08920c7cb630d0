"""A report on embeddings: how close the vectors of student and teacher are, and the neighbors of some rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdistill.console import Table
from kdistill.evaluation import metrics
from kdistill.evaluation.intervals import Estimate, wilson
from kdistill.stages.dark_knowledge import are_images
from kdistill.stages.report.changes import inputs_of
from kdistill.stages.report.diagrams import Axis, histograms
from kdistill.stages.report.html import Content, Html, Section, element, paragraphs, table
from kdistill.stages.report.pictures import picture
from kdistill.stages.report.task_report import Compared, Material, TaskReport
from kdistill.tasks import is_labeled

QUERIES = 6
NEIGHBORS = 5


class EmbeddingReport(TaskReport):
    """Keeps the vectors of the test rows, (rows, width)."""

    gain_title = "Closeness to the teacher"

    def with_intervals(self, material: Material, compared: Sequence[Compared]) -> list[Compared]:
        """Return the networks with an interval of the mean cosine by Student's t, and Wilson's intervals of fractions."""
        labeled = int(is_labeled(material.dataset.test.labels).sum())
        found = []
        for each in compared:
            measures, known = each.measurement.measures, {}
            searched = min(each.measurement.rows, metrics.MOST_NEIGHBORS)
            for name, rows in (("neighbor_agreement", searched), ("probe_accuracy", labeled)):
                if name in measures:
                    count = round(measures[name] * rows)
                    known[name] = Estimate(measures[name], rows, None, *wilson(count, rows))
            cosines = _cosines(compared, each)
            if cosines is not None:
                known["cosine"] = Estimate.of(cosines.tolist())
            found.append(replace(each, measures=known))
        return found

    def headline(self, compared: Sequence[Compared]) -> str:
        last, measures = compared[-1].title.lower(), compared[-1].measurement.measures
        rows = f"{compared[-1].measurement.rows:,} test rows"
        if "cosine" in measures:
            return (
                f"The vectors of the {last} have a mean cosine of {measures['cosine']:.4f} to its teacher's on {rows}."
            )
        if "neighbor_agreement" in measures:
            same = f"{measures['neighbor_agreement']:.1%} of {rows}"
            return f"With the {last}, {same} have the same nearest neighbor as with its teacher."
        return f"The {last} could not be compared with its teacher."

    def facts(self, material: Material) -> Iterator[tuple[str, Content]]:
        yield from super().facts(material)
        names = material.dataset.class_names
        yield "Labels", f"{len(names):,} classes, only for the probe" if names else "none"

    def gain(self, material: Material, compared: Sequence[Compared]) -> Iterator[Content]:
        yield from super().gain(material, compared)
        if compared[0].role != "teacher":
            yield paragraphs("The teacher is not where it was, or has changed.", class_="missing")

    def label(self, material: Material, row: int) -> str:
        label = material.dataset.test.labels[row]
        return f"label {material.dataset.class_names[label]}" if label >= 0 else "no label"

    def sections(self, material: Material, compared: Sequence[Compared]) -> Iterator[Section]:
        if compared[0].role != "teacher" or len(compared) == 1:
            return
        cosines = _cosines(compared, compared[-1])
        if cosines is not None:
            low, middle = np.quantile(cosines, (0.05, 0.5))
            caption = f"median {middle:.4f}; 5% of rows are below {low:.4f}"
            axis = Axis("cosine", min(Axis.of("", cosines).low, 0.98), 1.0)
            drawn = histograms([compared[-1]], [cosines], axis, [caption])
            text = "The cosine of the angle between the vectors of student and teacher, for each test row. Rows below the axis are in the first bar."
            yield Section("cosines", "Cosines", [paragraphs(text), element("div", drawn, class_="diagrams")])
        yield self.neighbors(material, compared, cosines)

    def neighbors(
        self, material: Material, compared: Sequence[Compared], cosines: NDArray[np.float64] | None
    ) -> Section:
        """Return the section with the nearest neighbors of some rows, with the vectors of both networks."""
        rows = len(material.dataset.test)
        order = np.arange(rows) if cosines is None else np.argsort(cosines, kind="stable")
        queries = order[np.unique(np.linspace(0, rows - 1, min(QUERIES, rows)).astype(int))]
        networks = compared[0], compared[-1]
        found = [metrics.nearest(each.kept[0], queries, NEIGHBORS) for each in networks]
        pictures: dict[int, Html] = {}
        for row, values in inputs_of(material, np.unique(np.concatenate([queries, *(each.ravel() for each in found)]))):
            if isinstance(values, str) or are_images(np.asarray(values)[np.newaxis]):
                pictures[row] = picture(values, f"Test row {row}, {self.label(material, row)}")
        cards: list[Content] = []
        for place, query in enumerate(queries.tolist()):
            both = set(found[0][place].tolist()) & set(found[1][place].tolist())
            lines = [
                (each.title, *(self._cell(material, row, pictures, row in both) for row in its[place].tolist()))
                for each, its in zip(networks, found, strict=True)
            ]
            cosine = "" if cosines is None else f", cosine {cosines[query]:.4f}"
            title = f"Neighbors of row {query:,}, {self.label(material, query)}{cosine}"
            heads = ("network", *(str(number + 1) for number in range(found[0].shape[1])))
            cards.append(element("li", pictures.get(query), table(Table(title, heads, lines))))
        return Section(
            "neighbors",
            "Nearest neighbors",
            [
                paragraphs(
                    f"The {found[0].shape[1]} nearest other test rows of some rows, by cosine, nearest first: the number of the "
                    "row, and its label in brackets. Rows that are neighbors with both networks are bold."
                    + (
                        " The rows go from the lowest to the highest cosine between student and teacher."
                        * (cosines is not None)
                    )
                ),
                element("ul", cards, class_="queries"),
            ],
        )

    def _cell(self, material: Material, row: int, pictures: dict[int, Html], both: bool) -> Html:
        name = element("strong" if both else "span", f"{row:,}")
        label = material.dataset.test.labels[row]
        text = element("small", f" ({material.dataset.class_names[label]})") if label >= 0 else None
        return Html("".join(filter(None, (pictures.get(row), name, text))))


def _cosines(compared: Sequence[Compared], each: Compared) -> NDArray[np.float64] | None:
    """Return the cosine of each row to the teacher's vector, (rows,); None for the teacher, and for other widths."""
    teacher: Any = compared[0] if compared[0].role == "teacher" else None
    if teacher is None or each is teacher or each.kept[0].shape != teacher.kept[0].shape:
        return None
    return metrics.cosine_similarity(each.kept[0], teacher.kept[0])
