"""What measurements write: JSON, and parts of the project's documents, each between two markers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def describe(machine: Mapping[str, str], packages: Sequence[str], **more: str) -> str:
    """What figures were measured on, in words: processor and threads, `packages` with their versions, date, commit."""
    versions = (f"{name} {machine[name]}" for name in packages if name in machine)
    parts = [machine["processor"], f"{machine['threads']} threads", more.get("python", ""), ", ".join(versions)]
    parts += [machine["date"], more.get("rounds", ""), f"commit {machine['commit']}"]
    return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Part:
    """What lies between `begin` and `end`, each a line of its own that a document has once."""

    name: str
    command: str

    @property
    def begin(self) -> str:
        return f"<!-- {self.name}: begin. `{self.command}` writes this part -->"

    @property
    def end(self) -> str:
        return f"<!-- {self.name}: end -->"

    def read(self, document: Path) -> str:
        """The part as it is in `document`, without its markers. Raises ValueError where they are not there."""
        return self._split(document)[1].strip("\n")

    def write(self, document: Path, body: str) -> None:
        """Replaces the part. Raises ValueError where the markers are not there."""
        before, _, after = self._split(document)
        document.write_text(f"{before}{self.begin}\n{body}\n{self.end}{after}", encoding="utf-8")

    def _split(self, document: Path) -> tuple[str, str, str]:
        text = document.read_text(encoding="utf-8")
        if text.count(self.begin) != 1 or text.count(self.end) != 1 or text.index(self.begin) > text.index(self.end):
            raise ValueError(f"{document} needs the lines {self.begin!r} and {self.end!r}, once each")
        before, rest = text.split(self.begin)
        body, after = rest.split(self.end)
        return before, body, after
