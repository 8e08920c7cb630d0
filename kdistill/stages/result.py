"""What a stage returns. The command line prints it as a table or as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kdistill.console import Reporter
from kdistill.workspace import Artifact, Manifest


@dataclass(frozen=True)
class Result:
    """An artifact that a stage wrote or found up to date.

    Attributes:
        artifact: The artifact.
        manifest: Its manifest, as it is in the workspace.
        exit_status: Exit status of the command.
    """

    artifact: Artifact
    manifest: Manifest
    exit_status = 0

    def as_json(self) -> Any:
        """Return the result as an object that JSON can hold."""
        return {"name": self.artifact.name, "path": str(self.artifact.path), **asdict(self.manifest)}

    def show(self, reporter: Reporter) -> None:
        """Print the tables of the result, if it has any. The stage has printed its progress."""
