"""Draw docs/pictures/rooms.svg: the rooms of s_resnet on their floors, and who imports whom, read from the source.

python benchmarks/rooms.py
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "pictures" / "rooms.svg"
WIDTH, HIGH, GAP, BOX = 760, 46, 34, 108


def imports() -> dict[str, set[str]]:
    """The rooms that each room imports."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "s_resnet").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] in ("__init__", "version"):
            continue
        own = found.setdefault(parts[1], set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                above = parts[: len(parts) - node.level]
                named = [*above, *(node.module.split(".") if node.module else [])]
                own |= {named[1]} if len(named) > 1 else {alias.name for alias in node.names}
        own -= {parts[1], "version"}
    return found


def floors(rooms: dict[str, set[str]]) -> list[list[str]]:
    """The rooms by height: each stands just above the highest room that it imports."""
    height: dict[str, int] = {}

    def of(room: str) -> int:
        if room not in height:
            height[room] = 1 + max((of(below) for below in rooms[room]), default=-1)
        return height[room]

    top = max(map(of, rooms))
    return [sorted(room for room in rooms if height[room] == level) for level in range(top + 1)]


def drawn(rooms: dict[str, set[str]]) -> str:
    """The picture: an arrow goes from a room to one that it imports, unless a longer way already says so."""
    levels = floors(rooms)
    total = len(levels) * (HIGH + GAP) + GAP
    place = {
        room: (WIDTH * (i + 1) / (len(level) + 1), total - GAP - HIGH / 2 - at * (HIGH + GAP))
        for at, level in enumerate(levels)
        for i, room in enumerate(level)
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" '
        'font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#789"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{total}" fill="white"/>',
    ]
    for room, below in sorted(rooms.items()):
        for other in sorted(below - _reached(rooms, below)):
            (x, y), (to, end) = place[room], place[other]
            lines.append(
                f'<line x1="{x:.0f}" y1="{y + HIGH / 2 - 8:.0f}" x2="{to:.0f}" y2="{end - HIGH / 2 + 8:.0f}" '
                'stroke="#789" marker-end="url(#tip)"/>'
            )
    for room, (x, y) in sorted(place.items()):
        lines.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y - 15:.0f}" width="{BOX}" height="30" rx="5" '
            'fill="#eef3f8" stroke="#456"/>'
            f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{escape(room)}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def _reached(rooms: dict[str, set[str]], below: set[str]) -> set[str]:
    """What the rooms below import, directly or not."""
    found: set[str] = set()
    waiting = [other for room in below for other in rooms[room]]
    while waiting:
        room = waiting.pop()
        if room not in found:
            found.add(room)
            waiting.extend(rooms[room])
    return found


if __name__ == "__main__":
    PICTURE.write_text(drawn(imports()))
    print(f"{PICTURE.relative_to(ROOT)}: {len(imports())} rooms on {len(floors(imports()))} floors")
