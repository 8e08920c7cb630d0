"""The page of a report: its header and its sections, in order."""

from __future__ import annotations

from collections.abc import Mapping

from kdistill import data
from kdistill.settings import CLASSIFICATION, EMBEDDING, MULTI_LABEL, REGRESSION
from kdistill.stages.report import general
from kdistill.stages.report.classification import ClassificationReport
from kdistill.stages.report.embedding import EmbeddingReport
from kdistill.stages.report.html import Section, document, element, paragraphs
from kdistill.stages.report.multi_label import MultiLabelReport
from kdistill.stages.report.regression import RegressionReport
from kdistill.stages.report.task_report import Material, TaskReport

REPORTS: Mapping[str, type[TaskReport]] = {  # by task
    CLASSIFICATION: ClassificationReport,
    MULTI_LABEL: MultiLabelReport,
    REGRESSION: RegressionReport,
    EMBEDDING: EmbeddingReport,
}


def render(material: Material, report: TaskReport) -> str:
    """Return the page. The same artifacts give the same text."""
    compared = report.compared(material)
    sweeps = general.summaries(material)
    over_seeds = [general.gain_over_seeds(material, *pair) for pair in sweeps.items()]
    gain = [report.gain(material, compared), general.describe_sweeps(material, sweeps)]
    sections = [
        general.describe_data(material, *report.facts(material)),
        general.networks(material),
        Section("gain", report.gain_title, gain),
        general.learning_curves(material),
        *report.sections(material, compared),
        general.lineage(material),
    ]
    name = data.short_name(material.dataset.name)
    header = element(
        "header",
        paragraphs(f"Distillation report: {name}", class_="role"),
        element("h1", report.headline(compared)),
        paragraphs(*(line for line in over_seeds[:1] if line)),
        report.tiles(compared),
        element("nav", element("ul", (element("li", each.link()) for each in sections)), aria_label="Sections"),
    )
    return document(f"Distillation of {name}", header, element("main", (each.html() for each in sections)))
