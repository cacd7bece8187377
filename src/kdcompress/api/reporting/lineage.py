"""Where a run comes from: its teacher, the networks that it was built on, and how each of them was made."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from kdcompress.api.reporting.commands import command_line
from kdcompress.errors import UserError
from kdcompress.models.loading import Network
from kdcompress.quantities import scaled
from kdcompress.references import LOCAL_DIR
from kdcompress.report.facts import Step, Training
from kdcompress.runs import RECORD, RunFolder, file_hash

MOST_STEPS = 100
TEACHER, START, MEMBER, BASE, SUBJECT = "teacher", "starting weights", "member", "base", "this run"


class Lineage:
    """The networks before a run, oldest first, and their trainings."""

    def __init__(self, network: Network) -> None:
        self.steps: list[Step] = []
        self.trainings: list[Training] = []
        self._seen: set[str] = set()
        path = network.path
        if path is None:
            known = {"reference": network.reference, "arch": network.arch}
            self.steps.append(Step(network.reference, SUBJECT, "", _details({}, known)))
            return
        self._seen.add(str(path))
        self._add(path, SUBJECT, network.record, "")

    def _visit(self, reference: str, role: str, known: dict[str, Any], fingerprint: Any = None) -> None:
        """A network before the run, by what the record of its child knows of it."""
        path = Path(reference.removeprefix(LOCAL_DIR))
        key = str(path)
        if key in self._seen or len(self._seen) > MOST_STEPS:
            return
        self._seen.add(key)
        try:
            if not (path / RECORD).is_file():
                gone = path.is_absolute() and not path.exists()
                self.steps.append(
                    Step(reference, role, "", _details({}, known), "It is no longer there." if gone else "")
                )
                return
            record = RunFolder(path.absolute()).record()
            changed = fingerprint is not None and file_hash(path) != fingerprint
            self._add(path, role, record, "It has changed since the next network was made from it." if changed else "")
        except (UserError, OSError, ValueError) as error:
            problem = error.problem if isinstance(error, UserError) else str(error)
            self.steps.append(Step(reference, role, "", [], problem))

    def _add(self, path: Path, role: str, record: dict[str, Any], notice: str) -> None:
        """Those before it first, then the run itself."""
        for key, of in (("teacher", TEACHER), ("start", START)):
            entry = record.get(key)
            if isinstance(entry, dict) and isinstance(entry.get("reference"), str):
                self._visit(entry["reference"], of, entry)
        files = record.get("parent_files") or [record.get("parent_fingerprint")]
        for parent, known in itertools.zip_longest(parents := record.get("parents") or [], files[: len(parents)]):
            self._visit(parent, MEMBER if record.get("command") == "cascade" else BASE, {}, known)
        self.steps.append(Step(path.name, role, command_line(record), _details(record, {}), notice))
        if rows := RunFolder(path.absolute()).metrics():
            names = dict.fromkeys(name for row in rows for name in row)
            self.trainings.append(Training(path.name, {name: [row.get(name) for row in rows] for name in names}))


def _details(record: dict[str, Any], known: dict[str, Any]) -> list[tuple[str, str]]:
    """What one asks of a network first.

    Args:
        known: Of the teacher's entry in another record, where it has none itself.
    """
    result, options = record.get("result") or {}, record.get("options") or {}
    top1 = result.get("gated_top1", result.get("top1"))
    versions = record.get("versions")
    made = versions.items() if isinstance(versions, dict) else ()
    rows: list[tuple[str, Any]] = [
        ("architecture", _architecture(result) or known.get("architecture") or known.get("arch")),
        ("method", record.get("method")),
        ("data", options.get("data")),
        ("images without labels", result.get("unlabelled")),
        ("epochs", result.get("epochs")),
        ("recipe", _recipe(record)),
        ("seed", record.get("seed")),
        (
            f"top-1 ({result.get('split') or 'calibration'})",
            f"{top1:.2f} %" if isinstance(top1, (int, float)) and math.isfinite(top1) else None,
        ),
        ("MACs", _scaled(result.get("macs") or known.get("macs"))),
        ("hardware", record.get("hardware")),
        ("precision", result.get("precision") or record.get("precision")),
        ("versions", ", ".join(f"{name} {value}" for name, value in made)),
        ("weights", known.get("fingerprint")),
    ]
    return [(label, str(value)) for label, value in rows if value not in (None, "")]


def _recipe(record: dict[str, Any]) -> str:
    """Optimiser and losses of the last phase of a training; empty where they are not recorded."""
    phases = record.get("recipe") or {}
    used = phases[max(phases)] if phases else {}
    told = [
        f"{words} {used[key] if isinstance(used[key], int) else format(used[key], '.4g')}"
        for key, words in (
            ("lr", "learning rate"),
            ("batch_size", "batch size"),
            ("label_smoothing", "label smoothing"),
            ("alpha", "alpha"),
            ("temperature", "temperature"),
        )
        if used.get(key)
    ]
    return ", ".join([*filter(None, [used.get("opt")]), *told])


def _architecture(result: dict[str, Any]) -> str:
    """Of a cascade, those of its members."""
    members = result.get("members")
    if isinstance(members, list) and members and all(isinstance(each, dict) for each in members):
        return " + ".join(str(each.get("architecture")) for each in members)
    return str(result.get("architecture") or "")


def _scaled(macs: Any) -> str | None:
    return scaled(macs) if isinstance(macs, (int, float)) and math.isfinite(macs) else None
