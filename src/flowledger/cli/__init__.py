"""The `flowledger` command, in three steps, so that help and completion answer at once.

1. This file knows the names of the commands and their one-line helps.
2. `cli/<command>.py` declares what may be typed, with its help. It is loaded when its command is typed, completed or
   asked for help, and imports Typer, `cli/options` and the enums of `domain/`; a test holds it to that.
3. `cli/actions/<command>.py` does it: a function for each subcommand. The declaration imports it inside its own body,
   when it is called; drivers, settings, tables and the worker are met from there on.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

BEGAN = time.monotonic()
"""When the process did, before it knew what for."""

COMMANDS = {
    "up": "Start everything here: embedded Postgres, a worker for this project and the API.",
    "run": "Run a flow and watch it; exits by its outcome.",
    "executions": "List, show, watch, cancel, repeat and prune executions, and read their logs.",
    "flows": "List the project's flows, show their graph and input schema; pause and resume them.",
    "costs": "Tell what was spent: by flow, model, user, day, mode or meeting.",
    "errors": "Group what failed: how often, since when, and what it wasted.",
    "budgets": "List, set and remove what may be spent in a day or a month.",
    "prices": "List, set, import and check the prices of models; price old executions again.",
    "tokens": "Create, list and revoke personal tokens of the API.",
    "login": "Print a one-time link that lets a browser in to the API of `flowledger up`.",
    "server": "Serve the API until stopped.",
    "worker": "Claim and run executions until stopped.",
    "db": "Migrate and check the database; print its reference document.",
    "doctor": "Check this machine, project and database, with a remedy for each finding.",
}
_ALIASES = {"ex": "executions"}


class _Commands(TyperGroup):
    """Knows every command's name and one-line help, and no more until one is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:  # noqa: ARG002
        name = _ALIASES.get(cmd_name, cmd_name)
        return _Lazy(name) if name in COMMANDS else None

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if extra.get("resilient_parsing"):
            _complete_without_rich()
        return super().make_context(info_name, args, parent, **extra)


class _Lazy(TyperCommand):
    """Stands for a command of `cli/<name>.py` and becomes it when it is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name, help=COMMANDS[name])

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.loaded().make_context(info_name, args, parent, **extra)

    def loaded(self) -> Any:
        """The command itself, with all that it declares."""
        command = typer.main.get_command(importlib.import_module(f"flowledger.cli.{self.name}").app)
        for leaf in getattr(command, "commands", {"": command}).values():
            _refuse_servers(leaf)
        return command


def _refuse_servers(command: Any) -> None:
    """A command that does not know `--url` says why, rather than that there is no such option."""
    if any("--url" in param.opts for param in command.params):
        return
    refusing = typer.Typer(add_completion=False)
    refusing.command()(_without_server)
    (option,) = typer.main.get_command(refusing).params
    option.expose_value = False
    command.params.append(option)


def _no_server(given: str | None) -> None:
    if given is not None:
        from flowledger.cli.opening import NO_SERVER

        raise NO_SERVER


def _without_server(
    url: Annotated[str | None, typer.Option("--url", hidden=True, is_eager=True, callback=_no_server)] = None,
) -> None:
    """Declares the option for commands that refuse it."""


def _complete_without_rich() -> None:
    """Typer loads Rich, which takes longer than all the rest, to take markup out of helps. Ours have none."""
    sys.modules["rich"] = None  # type: ignore[assignment]


app = typer.Typer(
    name="flowledger",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from flowledger import __version__

        typer.echo(f"flowledger {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The control plane and execution ledger for CrewAI Flows, on your own Postgres."""


def main() -> None:
    """Runs the command line; every error leaves as one clear message and an exit code of `cli/exits.py`."""
    try:
        app()
    except Exception as error:
        from flowledger.cli.exits import report

        sys.exit(report(error))
