"""What the tests of the docs look at: pages, links, blocks of code, commands. A checker answers with what is wrong."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL
)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

# Put together here, since no file may name one, this one included.
REGISTRIES = ("py" + "pi.org", "python" + "hosted.org", "npm" + "js.", "ana" + "conda.")
FORBIDDEN = re.compile(
    "|".join([*map(re.escape, REGISTRIES), r"/home/\w", r"/root\b", "/work/", "/tmp/", r"\.internal\b"]), re.IGNORECASE
)
"""Hosts of package registries, and paths that mean something on one machine only."""


@dataclass(frozen=True)
class Block:
    """A fenced block of code. `why_not_run` is the reason given in front of it, if any."""

    page: Path
    number: int
    kind: str
    text: str
    why_not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.number}"


def pages() -> list[Path]:
    """Every page that people read, the generated ones included."""
    found = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted(page for page in found if not any(part.startswith(".") for part in page.relative_to(ROOT).parts))


def blocks(kind: str) -> list[Block]:
    return [block for page in pages() for block in blocks_of(page, page.read_text()) if block.kind == kind]


def blocks_of(page: Path, text: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(text):
        yield Block(page, text.count("\n", 0, match.start()) + 1, match["kind"], match["text"], match["why"])


def missing(names: Iterable[str], text: str) -> list[str]:
    """Names that the text does not say in code letters."""
    return [name for name in names if not re.search(rf"`[^`\n]*(?<![\w.]){re.escape(name)}(?![\w])[^`\n]*`", text)]


# -- Links ------------------------------------------------------------------------------------------------------------


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of the page that lead nowhere: no such file, or no such heading in it."""
    prose = _BLOCK.sub("", text)
    targets = {part for match in _LINK.finditer(prose) for part in match.groups() if part}
    return sorted(
        target for target in targets if not _is_elsewhere(target) and not _leads_somewhere(page, target, text)
    )


def _is_elsewhere(target: str) -> bool:
    return target.startswith(("https://", "http://", "mailto:"))


def _leads_somewhere(page: Path, target: str, text: str) -> bool:
    path, _, heading = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return False
    return not heading or heading in _anchors(text if file == page else file.read_text())


def _anchors(text: str) -> set[str]:
    """Headings as GitHub makes anchors of them."""
    told = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(_BLOCK.sub("", text)))
    return {heading.replace(" ", "-") for heading in told}


# -- Commands ---------------------------------------------------------------------------------------------------------


def wrong_commands(text: str) -> list[str]:
    """Lines of a shell block that call a command, option or make target which is not there."""
    wrong = []
    for line in text.replace("\\\n", " ").splitlines():
        if not re.match(r"(\w+=\S* )*(flowledger|make) ", line):
            continue
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words.pop(0)
        if words[:1] == ["flowledger"] and not _is_command(words[1:]):
            wrong.append(line)
        if words[:1] == ["make"] and not set(words[1:]) <= _make_targets():
            wrong.append(line)
    return wrong


def _is_command(words: list[str]) -> bool:
    known = _options()
    name = next((name for name in (" ".join(words[:2]), " ".join(words[:1])) if name in known), None)
    if name is None:
        return words[:1] == ["--install-completion"]
    given = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}
    return given <= known[name]


@cache
def _options() -> dict[str, set[str]]:
    script = reference_pages()
    return {
        " ".join([name, leaf.name or ""]).strip() if leaf is not command else name: {
            "--help",
            *(option for param in leaf.params for option in param.opts if option.startswith("-")),
        }
        for name in script.cli.COMMANDS
        for command in [script._command(name)]
        for leaf in (script._below(command) or [command])
    }


@cache
def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


# -- What the code says -----------------------------------------------------------------------------------------------


def reference_pages() -> ModuleType:
    """scripts/reference_pages.py as a module."""
    return script("reference_pages")


@cache
def script(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def error_types_in_python(text: str) -> set[str]:
    """Names given as `error_type="..."`."""
    keywords = (
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.keyword) and node.arg == "error_type"
    )
    return {str(word.value.value) for word in keywords if isinstance(word.value, ast.Constant) and word.value.value}


def error_types_in_sql(text: str) -> set[str]:
    """Names that a statement writes into error_type."""
    lines = (line.partition("error_type = ")[2] for line in text.splitlines() if "error_type = " in line)
    return {name for line in lines for name in re.findall(r"'([A-Z]\w+)'", line)}


def python_faults(text: str) -> str | None:
    try:
        compile(text, "block", "exec")
    except SyntaxError as wrong:
        return str(wrong)
    return None


def toml_faults(text: str) -> str | None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as wrong:
        return str(wrong)
    return None


def not_listed(listed: Path, files: Collection[Path]) -> list[Any]:
    """Files that the page has no link to."""
    text = listed.read_text()
    return [file for file in files if f"]({file.relative_to(listed.parent)})" not in text]
