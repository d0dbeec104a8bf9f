"""Takes the picture on the README: real commands in a real terminal, drawn as SVG for light and dark pages.

    python docs/img/record.py          (needs the examples' stub model, no key; writes terminal-{light,dark}.svg)

Each command runs in a pseudo-terminal; what it leaves on the screen is replayed line by line, so that a live display
shows as its last frame.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples"
COLUMNS = 112

BEFORE = ("order_triage -i item=desk -i quantity=2", "lead_score -i lead.email=ada@example.org -i lead.employees=120")
SHOWN = (
    "flowledger run board_brief -i company=Northwind -i topic='hiring next quarter'",
    "flowledger executions list",
)

DARK = TerminalTheme(
    (15, 18, 24),
    (214, 219, 228),
    [
        (15, 18, 24),
        (240, 113, 120),
        (126, 200, 132),
        (226, 180, 92),
        (104, 164, 246),
        (190, 140, 240),
        (90, 190, 200),
        (214, 219, 228),
    ],
)
LIGHT = TerminalTheme(
    (252, 252, 253),
    (34, 40, 49),
    [
        (252, 252, 253),
        (190, 40, 50),
        (20, 120, 60),
        (150, 95, 0),
        (20, 90, 200),
        (120, 60, 180),
        (0, 110, 125),
        (34, 40, 49),
    ],
)

# Rich's own frame loads its font from the network; a page's picture may not.
FRAME = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>flowledger in a terminal</title>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "JetBrains Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: ui-sans-serif, system-ui, sans-serif; font-size: 18px; font-weight: 600; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def main() -> None:
    sys.path.insert(0, str(EXAMPLES))
    from stub_llm import StubServer, environment

    with tempfile.TemporaryDirectory() as data, StubServer() as url:
        os.environ.update(environment(url), FLOWLEDGER_DATA_DIR=data, FLOWLEDGER_PROJECT=str(EXAMPLES))
        for flow in BEFORE:
            subprocess.run(_argv(f"flowledger run {flow}"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        screens = [(command, screen(_argv(command))) for command in SHOWN]
    for name, theme in (("dark", DARK), ("light", LIGHT)):
        (HERE / f"terminal-{name}.svg").write_text(draw(screens, theme))


def _argv(command: str) -> list[str]:
    program, *arguments = shlex.split(command)
    return [str(Path(sys.executable).with_name(program)), *arguments]


def screen(argv: list[str]) -> list[str]:
    """What the command leaves on a terminal, line by line, colours kept."""
    terminal, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": "50", "TERM": "xterm-256color"}
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    said = b"".join(_until_closed(terminal))
    process.wait()
    os.close(terminal)
    return _replayed(said.decode())


def _until_closed(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(terminal, 65_536)
        except OSError:
            return
        yield data


def _replayed(said: str) -> list[str]:
    lines, at = [""], 0
    for part in re.split(r"(\x1b\[\d*A|\x1b\[2K|\x1b\[\?25[lh]|\r|\n)", said):
        if part == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[at] = ""
        elif part.endswith("A") and part.startswith("\x1b["):
            at = max(0, at - int(part[2:-1] or 1))
        elif part and part != "\r" and not part.startswith("\x1b[?"):
            lines[at] += part
    return lines


def draw(screens: list[tuple[str, list[str]]], theme: TerminalTheme) -> str:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    for number, (command, lines) in enumerate(screens):
        if number:
            console.print()
        console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
        while lines and not lines[-1].strip():
            lines.pop()
        for line in lines:
            console.print(Text.from_ansi(line), no_wrap=True, overflow="ellipsis")
    return console.export_svg(title="flowledger", theme=theme, code_format=FRAME, unique_id="fl")


if __name__ == "__main__":
    main()
