"""Draws the pictures of docs/architecture.md: `python docs/draw.py`."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from cyclemlp_backbones import cycle_offsets

DOCS = Path(__file__).resolve().parent
COLOURS = ("#4c78a8", "#f58518", "#54a24b")


def rooms() -> dict[str, list[str]]:
    """Room -> modules, in the order of the table in architecture.md."""
    table = (DOCS / "architecture.md").read_text(encoding="utf-8").split("<!-- rooms: begin -->")[1]
    rows = [line.split("|") for line in table.split("<!-- rooms: end -->")[0].splitlines() if line.startswith("| ")]
    return {row[1].strip(): re.findall(r"`([a-z_]+)`", row[2]) for row in rows if "`" in row[2]}


def draw_rooms(path: Path) -> None:
    found = rooms()
    figure, axes = plt.subplots(figsize=(9, 0.95 * len(found)))
    for number, (room, modules) in enumerate(found.items()):
        y = -number
        axes.add_patch(plt.Rectangle((0, y), 9, 0.78, facecolor="#eef2f7", edgecolor="#4c78a8"))
        axes.text(0.15, y + 0.39, room, va="center", weight="bold")
        axes.text(2.1, y + 0.39, textwrap.fill(" · ".join(modules), 62), va="center", family="monospace", fontsize=9)
        if number:
            axes.annotate("", (8.6, y + 1.0), (8.6, y + 0.78), arrowprops={"arrowstyle": "->", "color": "#4c78a8"})
    axes.text(9.1, -(len(found) - 1) / 2 + 0.39, "imports", rotation=90, va="center", color="#4c78a8")
    axes.set_xlim(-0.05, 9.5)
    axes.set_ylim(-len(found) + 0.9, 0.9)
    axes.axis("off")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def draw_shift(path: Path, channels: int = 7, length: int = 3, width: int = 5) -> None:
    """Left: the positions of a row that output position 2 reads; right: the order in which the layer keeps them."""
    offsets = cycle_offsets(channels, (1, length))[:, 1]
    groups = -(-channels // length)
    figure, (reads, order) = plt.subplots(1, 2, figsize=(10, 3.9), gridspec_kw={"width_ratios": [5, 4]})
    middle = width // 2
    for channel in range(channels):
        for position in range(width):
            read = position == middle + offsets[channel]
            colour = COLOURS[channel % length] if read else "white"
            reads.add_patch(plt.Rectangle((position, -channel), 0.92, 0.92, facecolor=colour, edgecolor="#999999"))
        reads.text(
            width + 0.2, -channel + 0.45, f"d({channel}) = {offsets[channel]:+d}".replace("+0", "0"), va="center"
        )
    for position in range(width):
        distance = position - middle
        label = "p" if not distance else f"p {'+' if distance > 0 else '-'} {abs(distance)}"
        reads.text(position + 0.46, 1.1, label, ha="center")
    reads.text(-0.2, 1.1, "channel", ha="right")
    for channel in range(channels):
        reads.text(-0.2, -channel + 0.45, str(channel), ha="right", va="center")
    reads.set_title(f"what output position p reads, kernel (1, {length})", fontsize=10)
    for residue in range(length):
        for place in range(groups):
            channel = residue + place * length
            x = residue * groups + place
            there = channel < channels
            colour = COLOURS[residue] if there else "white"
            order.add_patch(plt.Rectangle((x, -3), 0.92, 0.92, facecolor=colour, edgecolor="#999999"))
            order.text(x + 0.46, -2.54, str(channel) if there else "–", ha="center", va="center")
        text = f"offset {offsets[residue]:+d}".replace("+0", "0")
        order.text(residue * groups + groups / 2, -3.5, text, ha="center", color=COLOURS[residue])
    order.set_title("the order that the weight's columns are put into (– zeros)", fontsize=10)
    for axes, right in ((reads, width + 2.2), (order, length * groups)):
        axes.set_xlim(-1.2, right)
        axes.set_ylim(-channels + 0.6, 1.8)
        axes.axis("off")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    draw_rooms(DOCS / "pictures" / "rooms.png")
    draw_shift(DOCS / "pictures" / "shift.png")
