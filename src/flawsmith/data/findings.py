"""What a check found, in a form for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From the gravest to the lightest."""


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing.

    Attributes:
        severity: ``error`` stops a run or makes its figures meaningless, ``warning`` may spoil them, ``note``
            is to be known.
        name: short kebab-case name of the kind of finding, for programs.
        what: what is wrong, in one line.
        where: the files or folders concerned.
        fix: what to do about it, in one line.
    """

    severity: Severity
    name: str
    what: str
    where: tuple[Path, ...]
    fix: str

    @property
    def in_a_line(self) -> str:
        """What is wrong, and where there is something to do, what."""
        return self.what if self.fix == "nothing" else f"{self.what}; {self.fix}"


@dataclass(frozen=True)
class Findings:
    """All findings of a check, the gravest first.

    Attributes:
        summary: the data set in one line.
        items: the findings.
        recognised: why the data set was read in the layout it was, and in no other; one line each.
    """

    summary: str
    items: tuple[Finding, ...]
    recognised: tuple[str, ...] = ()

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(item for item in self.items if item.severity == severity)

    @property
    def sound(self) -> bool:
        """Whether nothing was found that must be fixed before a run."""
        return not self.of("error")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: ``summary``, ``recognised``, the count of each severity, and ``findings``."""
        rows = [{**asdict(item), "where": [str(path) for path in item.where]} for item in self.items]
        counts = {f"{severity}s": len(self.of(severity)) for severity in SEVERITIES}
        return {"summary": self.summary, "recognised": list(self.recognised), **counts, "findings": rows}
