"""Makes the synchronous client of the asynchronous one: the same lines with the words of waiting taken out.

    scripts/synchronous.py           (no arguments; `make docs` runs it)

So there is one client to read and to change. A test holds what is stored equal to what this file would write.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parent.parent / "src" / "flowledger" / "client"
WRITTEN, MADE = CLIENT / "asynchronous", CLIENT / "synchronous"

_OPENING = (
    "# Made of client/asynchronous by scripts/synchronous.py: change it there, and `make docs` writes it again.\n"
)

_WORDS = (
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"from asyncio import sleep", "from time import sleep"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\baclosing\b", "closing"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\baclose\b", "close"),
    (r"\baread\b", "read"),
    (r"\baiter_(\w+)", r"iter_\1"),
    (r"\basynchronous\b", "synchronous"),
)
_DOOR = '"""The client for whoever does not await. It is made of `client/asynchronous`."""\n'


def main() -> None:
    MADE.mkdir(exist_ok=True)
    for name, text in files().items():
        (MADE / name).write_text(text)


def files() -> dict[str, str]:
    """File name below client/synchronous -> what it must hold."""
    return {file.name: _made(file) for file in sorted(WRITTEN.glob("*.py"))}


def _made(file: Path) -> str:
    text = _DOOR if file.name == "__init__.py" else synchronous(file.read_text())
    return _in_shape(_OPENING + text, MADE / file.name)


def synchronous(text: str) -> str:
    """The same code for whoever does not await."""
    for word, other in _WORDS:
        text = re.sub(word, other, text)
    return text


def _in_shape(text: str, place: Path) -> str:
    """Shorter words take fewer lines, and imports another order."""
    ruff = str(Path(sys.executable).with_name("ruff"))
    for command in (("check", "--select", "I", "--fix", "--quiet"), ("format",)):
        named = [ruff, *command, "--stdin-filename", str(place), "-"]
        text = subprocess.run(named, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    main()
