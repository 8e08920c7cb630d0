"""The workspace: files, manifests and artifacts. Standard library only, so that an up-to-date stage answers at once.

`kinds` has a record for each kind of artifact. `artifact` replaces artifacts whole; `files` and `lock` do its work on
the disk. `manifest` and `schema` define what is recorded, `layout` where artifacts are, `staleness` whether they are
current, `unfinished` what was interrupted, and `commands` which command line makes them.
"""

from kdistill.workspace import commands
from kdistill.workspace.artifact import Artifact, MissingArtifactError, Staging, WouldWrite
from kdistill.workspace.files import digest, exchange, flush, link_in, short_digest, size
from kdistill.workspace.kinds import KINDS, Kind
from kdistill.workspace.layout import Workspace
from kdistill.workspace.manifest import FORMAT, Manifest, threads
from kdistill.workspace.schema import Input

__all__ = [
    "FORMAT",
    "KINDS",
    "Artifact",
    "Input",
    "Kind",
    "Manifest",
    "MissingArtifactError",
    "Staging",
    "Workspace",
    "WouldWrite",
    "commands",
    "digest",
    "exchange",
    "flush",
    "link_in",
    "short_digest",
    "size",
    "threads",
]
