"""What the shell is offered at a tab, and how little is loaded for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from flowledger import cli
from flowledger.domain.mode import Mode
from flowledger.domain.status import Status

SHELLS = ["bash", "zsh"]
_LIGHT = re.compile(
    r"flowledger(\.(domain(\.(dimension|mode|priority|reach|status|token|window))?|cli(\.(options|"
    + "|".join(cli.COMMANDS)
    + r"))?))?"
)
_HEAVY = {"crewai", "psycopg", "psycopg_pool", "pydantic_settings", "structlog", "jsonschema", "humanize", "rich"}


def _leaves() -> list[tuple[str, Any]]:
    """Every command as it is typed, with what Typer made of it."""
    root = typer.main.get_command(cli.app)
    found: list[tuple[str, Any]] = []
    for name in cli.COMMANDS:
        command: Any = root.get_command(None, name).loaded()  # type: ignore[attr-defined]
        below = getattr(command, "commands", {})
        found += [(f"{name} {leaf}", below[leaf]) for leaf in below] or [(name, command)]
    return found


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_is_offered_and_an_alias_is_understood(shell: str) -> None:
    assert _offered("flowledger ", shell) == [*cli.COMMANDS]
    assert _offered("flowledger ex", shell) == ["executions"]
    assert _offered("flowledger ex l", shell) == ["list", "logs"]


@pytest.mark.parametrize(("path", "command"), [pytest.param(*leaf, id=leaf[0]) for leaf in _leaves()])
def test_every_option_is_offered_and_nothing_heavy_is_loaded(path: str, command: Any) -> None:
    shell = "bash" if " " in path else "zsh"
    shown = [param for param in command.params if not getattr(param, "hidden", False)]
    options = {max(param.opts, key=len) for param in shown if param.opts[0].startswith("-")}
    done = _complete(f"flowledger {path} --", shell, sys.executable, "-X", "importtime")
    assert set(_words(done.stdout, shell)) == options | {"--help"}
    assert "flowledger.cli" in _imported(done.stderr)
    assert _too_much(_imported(done.stderr)) == set()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("executions list --status ", [*Status]),
        ("executions list --status failed,c", ["failed,completed", "failed,cancelled"]),
        ("executions list --mode ", [*Mode]),
        ("executions show ", ["@last", "@failed"]),
        ("executions cancel ", ["@last", "@failed"]),
        ("flows graph greet --format m", ["mermaid"]),
        ("db url --role ", ["api", "worker", "owner"]),
        ("costs --by m", ["model", "mode", "meeting"]),
        ("budgets set --per ", ["day", "month"]),
        ("budgets set --user ", ["each"]),
        ("budgets set --on-reach w", ["warn"]),
    ],
)
@pytest.mark.parametrize("shell", SHELLS)
def test_values_that_are_known_without_a_database_are_offered(line: str, offered: list[str], shell: str) -> None:
    assert _offered(f"flowledger {line}", shell) == offered


def test_helps_have_no_markup_that_completion_would_have_to_take_out() -> None:
    helps = [*cli.COMMANDS.values()]
    for _, command in _leaves():
        helps += [command.help or "", *(getattr(param, "help", None) or "" for param in command.params)]
    assert len(helps) > 50
    assert [told for told in helps if re.search(r"\[/?\w", told)] == []


def test_the_checker_of_what_is_loaded_finds_too_much() -> None:
    found = _too_much(_imported(_python("import flowledger.cli.actions.run", "-X", "importtime").stderr))
    assert {"psycopg", "pydantic_settings", "structlog", "rich", "flowledger.cli.actions.run"} <= found


def _python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, check=True, timeout=20
    )


def _offered(line: str, shell: str) -> list[str]:
    return _words(_complete(line, shell, sys.executable).stdout, shell)


def _complete(line: str, shell: str, *python: str) -> subprocess.CompletedProcess[str]:
    """Asks as the script does that `flowledger --install-completion` gives to the shell."""
    asked = {
        "_FLOWLEDGER_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": line,
    }
    program = str(Path(sys.executable).with_name("flowledger"))
    done = subprocess.run(
        [*python, program], capture_output=True, text=True, env={**os.environ, **asked}, check=False, timeout=20
    )
    assert done.returncode == 0, done.stderr
    return done


def _words(answer: str, shell: str) -> list[str]:
    if shell == "bash":
        return answer.split()
    return re.findall(r'^(?:_arguments \'\*: :\(\()?"([^"]+)"', answer, re.MULTILINE)


def _imported(told: str) -> set[str]:
    return set(re.findall(r"\| +([\w.]+)$", told, re.MULTILINE))


def _too_much(imported: set[str]) -> set[str]:
    ours = {name for name in imported if name.split(".")[0] == "flowledger" and not _LIGHT.fullmatch(name)}
    return ours | {name for name in imported if name in _HEAVY}
