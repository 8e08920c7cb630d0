"""The page of a report: its header and its sections, in order."""

from __future__ import annotations

from kdistill import data
from kdistill.stages.report import classification, general
from kdistill.stages.report.classification import Outcomes
from kdistill.stages.report.general import Material
from kdistill.stages.report.html import Section, document, element, paragraphs

__all__ = ["Outcomes", "render"]


def render(material: Material, outcomes: Outcomes) -> str:
    """Return the page. The same artifacts give the same text."""
    compared = outcomes.compared(material)
    sweeps = general.summaries(material)
    over_seeds = [classification.gain_over_seeds(sweep, general.chosen(found)) for sweep, found in sweeps.items()]
    gain = [classification.gain(material, compared), general.describe_sweeps(material, sweeps)]
    sections = [
        general.describe_data(material, *classification.facts(material)),
        general.networks(material),
        Section("gain", "Gain over hard labels", gain),
        general.learning_curves(material),
        classification.dark_knowledge(material),
        classification.calibration(material, compared),
        classification.changed_rows(material, compared),
        general.lineage(material),
    ]
    name = data.short_name(material.dataset.name)
    header = element(
        "header",
        paragraphs(f"Distillation report: {name}", class_="role"),
        element("h1", classification.headline(material, compared)),
        paragraphs(*(line for line in over_seeds[:1] if line)),
        classification.tiles(compared),
        element("nav", element("ul", (element("li", each.link()) for each in sections)), aria_label="Sections"),
    )
    return document(f"Distillation of {name}", header, element("main", (each.html() for each in sections)))
