"""Parts of the project's documents that measurements write, each between two markers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
