"""What a stage returns: the command line prints it as a table or as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kdistill.console import Reporter
from kdistill.workspace import Artifact, Manifest


@dataclass(frozen=True)
class Result:
    """An artifact that a stage wrote or found up to date.

    Attributes:
        artifact: which one.
        manifest: as it is in the workspace.
    """

    artifact: Artifact
    manifest: Manifest

    @property
    def exit_status(self) -> int:
        """The exit status of the command."""
        return 0

    def as_json(self) -> Any:
        """Return the result as JSON has it."""
        return {"name": self.artifact.name, "path": str(self.artifact.path), **asdict(self.manifest)}

    def show(self, reporter: Reporter) -> None:
        """Print the table of the result, if it has one. Lines of progress have been printed by the stage."""
