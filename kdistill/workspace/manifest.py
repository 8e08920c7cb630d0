"""Manifests: what an artifact was made from, how, and what came of it."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kdistill.errors import KdistillError
from kdistill.settings import format_value
from kdistill.workspace import schema
from kdistill.workspace.schema import Input

FORMAT = 1
LIBRARIES = ("kdistill", "tensorflow", "keras", "numpy", "h5py", "ai_edge_litert", "tf2onnx", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record that every artifact carries.

    The kind, the settings and the digests of the inputs are its identity: if they are equal, making the artifact again
    would make the same one.

    Attributes:
        kind: of the artifact, a name of `kinds.KINDS`.
        settings: of the command, by option.
        inputs: what it was made from, in order.
        outputs: the digests of its files, by name.
        results: numbers for people and later commands.
        versions: of the libraries that were loaded.
        created: ISO 8601, with the time zone.
        seconds: that it took.
        threads: that TensorFlow used per operation; the last bits of a result can depend on it.
        format: of the manifest.
    """

    kind: str
    settings: Mapping[str, Any]
    inputs: tuple[Input, ...] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    threads: int = 0
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the text of the manifest."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(
        cls, text: str | bytes, where: str, remedy: Callable[[], str], *, kind: str | None = None, finished: bool = True
    ) -> Manifest:
        """Read what `to_json` wrote, and check all that later code relies on.

        Args:
            text: the manifest.
            where: its file, for messages.
            remedy: returns the command that makes the artifact again, for messages.
            kind: that is expected; any by default.
            finished: whether the artifact is finished.

        Raises:
            KdistillError: if it is not a manifest of this kind, or of a newer format.
        """
        try:
            fields = json.loads(text)
            version = fields["format"]
            if isinstance(version, int) and version > FORMAT:
                raise KdistillError(
                    f"{where} has format {version}, and this version of kdistill reads up to {FORMAT}: upgrade kdistill"
                )
            wrong = next(schema.problems(fields, finished=finished), "")
            if not wrong and kind not in (None, fields["kind"]):
                wrong = f"kind {fields['kind']!r}"
            if wrong:
                raise ValueError(f"wrong or missing: {wrong}")
            return cls(**{**fields, "inputs": tuple(Input(**each) for each in fields["inputs"])})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f" ({error})" if type(error) is ValueError else ""
            raise KdistillError(f"{where} is not a valid manifest{reason}: {remedy()}") from None

    @classmethod
    def recovered(cls, text: str | bytes, kind: str) -> Manifest:
        """Return what a damaged manifest still records of settings and inputs, for the command that repairs it."""
        try:
            fields = json.loads(text)
            settings = part if isinstance(part := fields.get("settings"), dict) else {}
            inputs = part if isinstance(part := fields.get("inputs"), list) else []
        except (ValueError, AttributeError, RecursionError):
            settings, inputs = {}, []
        return cls(
            kind=kind,
            settings={name: value for name, value in settings.items() if schema.is_setting(kind, name, value)},
            inputs=tuple(Input(**each) for each in inputs if schema.is_input(each)),
        )

    def inputs_of(self, *kinds: str) -> tuple[Input, ...]:
        """Return the inputs of some kinds, in order."""
        return tuple(each for each in self.inputs if each.kind in kinds)

    def input(self, kind: str) -> Input | None:
        """Return the first input of a kind, or None."""
        return next(iter(self.inputs_of(kind)), None)

    def require_input(self, kind: str) -> Input:
        """Return the first input of a kind that every such manifest has.

        Raises:
            KeyError: if the input is missing.
        """
        if (found := self.input(kind)) is None:
            raise KeyError(kind)
        return found

    def differences(self, other: Manifest) -> list[str]:
        """Return how another manifest's identity differs from this one's, in words: `epochs 3 -> 5`.

        A setting that an older version did not write does not count as different if the other manifest has it off.
        """
        found = []
        if (self.kind, self.format) != (other.kind, other.format):
            found.append(f"{self.kind} of format {self.format} -> {other.kind} of format {other.format}")
        for name in dict.fromkeys([*self.settings, *other.settings]):
            old, new = self.settings.get(name), other.settings.get(name)
            if old != new and (new or name in self.settings):
                found.append(f"{name.replace('_', ' ')} {_in_words(old)} -> {_in_words(new)}")
        before, after = ({each.role: each for each in manifest.inputs} for manifest in (self, other))
        for role in dict.fromkeys([*before, *after]):
            old_input, new_input = before.get(role), after.get(role)
            if old_input is None or new_input is None or old_input.digest != new_input.digest:
                names = [each.name if each else "none" for each in (old_input, new_input)]
                found.append(f"{role} {'changed' if names[0] == names[1] else ' -> '.join(names)}")
        return found

    def with_results(self, *, outputs: Mapping[str, str], results: Mapping[str, Any], seconds: float) -> Manifest:
        """Return the manifest to write beside a finished artifact: this identity, and what came of it."""
        return replace(
            self,
            outputs=outputs,
            results=results,
            versions=_versions(),
            created=dt.datetime.now().astimezone().isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            threads=threads(),
        )


def _in_words(value: Any) -> str:
    return "none" if value is None else format_value(value)


def _versions() -> dict[str, str]:
    modules = {name: sys.modules.get(name) for name in LIBRARIES}
    loaded = {name: str(module.__version__) for name, module in modules.items() if module is not None}
    return {"python": platform.python_version(), **loaded}


def threads() -> int:
    """Return how many threads TensorFlow uses per operation: `TF_NUM_INTRAOP_THREADS`, or one per available core.

    Sums over several threads are rounded differently, so the bits of a result can depend on the number.
    """
    if (number := os.environ.get("TF_NUM_INTRAOP_THREADS", "")).isdecimal() and int(number):
        return int(number)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
