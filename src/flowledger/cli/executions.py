"""`flowledger executions`: list, show, watch, logs, rerun, cancel, prune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from flowledger.cli.options import (
    DatabaseOption,
    DataOption,
    DetachOption,
    JsonOption,
    PairsOption,
    ProjectOption,
    PythonOption,
    TokenOption,
    UrlOption,
    offering,
)
from flowledger.domain.mode import Mode
from flowledger.domain.status import Status

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="List, show, watch, cancel, repeat and prune executions, and read their logs.",
)

_newest = offering("@last", "@failed")

Reference = Annotated[
    str,
    typer.Argument(
        metavar="EXECUTION",
        help="Id, unique prefix of it, key, @last or @failed.",
        show_default=False,
        autocompletion=_newest,
    ),
]


@app.command("list")
@app.command("ls", hidden=True)
def list_(
    status: Annotated[
        str | None,
        typer.Option(
            help="One or more, comma-separated.", show_default=False, autocompletion=offering(*Status, listed=True)
        ),
    ] = None,
    flow: Annotated[str | None, typer.Option(help="Flow key.", show_default=False)] = None,
    mode: Annotated[Mode | None, typer.Option(show_default=False)] = None,
    since: Annotated[str | None, typer.Option(help="A span like 24h, or a date.", show_default=False)] = None,
    until: Annotated[str | None, typer.Option(help="A span like 1h, or a date.", show_default=False)] = None,
    meeting: Annotated[UUID | None, typer.Option(help="Board meeting.", show_default=False)] = None,
    by: Annotated[str | None, typer.Option(help="User id, or `me`.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    after: Annotated[str | None, typer.Option(help="`next` of the page before.", show_default=False)] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Executions, newest first."""
    from flowledger.cli.actions import executions

    executions.list_(
        status=status,
        flow=flow,
        mode=mode,
        since=since,
        until=until,
        meeting=meeting,
        by=by,
        limit=limit,
        after=after,
        as_json=as_json,
        url=url,
        token=token,
        database_url=database_url,
        data_dir=data,
    )


@app.command()
def show(
    reference: Reference,
    transitions: Annotated[bool, typer.Option("--transitions", help="Every step of its status.")] = False,
    state: Annotated[bool, typer.Option("--state", help="Input and output in full.")] = False,
    error: Annotated[bool, typer.Option("--error", help="The whole stack.")] = False,
    timeline: Annotated[bool, typer.Option("--timeline", help="What happened inside, as a tree.")] = False,
    usage: Annotated[bool, typer.Option("--usage", help="LLM calls with tokens, price and cost.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """One execution."""
    from flowledger.cli.actions import executions

    executions.show(
        reference=reference,
        transitions=transitions,
        state=state,
        error=error,
        timeline=timeline,
        usage=usage,
        as_json=as_json,
        url=url,
        token=token,
        database_url=database_url,
        data_dir=data,
    )


@app.command()
def watch(
    reference: Reference = "@last",
    timeout: Annotated[str | None, typer.Option(help="How long to wait, such as 5m.", show_default=False)] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Follow an execution until it has ended; exits by its outcome."""
    from flowledger.cli.actions import executions

    executions.watch(
        reference=reference,
        timeout=timeout,
        as_json=as_json,
        url=url,
        token=token,
        database_url=database_url,
        data_dir=data,
    )


@app.command()
def logs(
    reference: Reference = "@last",
    follow_: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the execution has ended.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """What the flow wrote to stdout and stderr, each on its own stream; with --json one object a line."""
    from flowledger.cli.actions import executions

    executions.logs(
        reference=reference,
        follow_=follow_,
        as_json=as_json,
        url=url,
        token=token,
        database_url=database_url,
        data_dir=data,
    )


@app.command()
def rerun(
    reference: Reference,
    pairs: PairsOption = None,
    edit: Annotated[bool, typer.Option("--edit", help="Change the inputs in $EDITOR first.")] = False,
    detach: DetachOption = False,
    as_json: JsonOption = False,
    project: ProjectOption = None,
    python: PythonOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Start a new execution with the inputs of an earlier one, changed or not; followed like `run`, same exit codes."""
    from flowledger.cli.actions import rerun

    rerun.rerun(
        reference=reference,
        pairs=pairs or [],
        edit=edit,
        detach=detach,
        as_json=as_json,
        project=project,
        python=python,
        url=url,
        token=token,
        database_url=database_url,
        data_dir=data,
    )


@app.command()
def cancel(
    references: Annotated[
        list[str], typer.Argument(metavar="EXECUTION...", show_default=False, autocompletion=_newest)
    ],
    reason: Annotated[str | None, typer.Option(help="Kept with the execution.", show_default=False)] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """End executions: a pending one at once, a running one as soon as its worker has killed it."""
    from flowledger.cli.actions import executions

    executions.cancel(
        references=references,
        reason=reason,
        as_json=as_json,
        url=url,
        token=token,
        database_url=database_url,
        data_dir=data,
    )


@app.command()
def prune(
    older_than: Annotated[str, typer.Option("--older-than", help="A span like 90d, or a date.", show_default=False)],
    status: Annotated[
        str | None,
        typer.Option(
            help="One or more, comma-separated. Default: all ended ones.",
            show_default=False,
            autocompletion=offering(*(one for one in Status if one.is_terminal), listed=True),
        ),
    ] = None,
    archive: Annotated[
        Path | None, typer.Option(help="Directory to keep what is deleted in, as Parquet files.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be deleted; the default.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete.")] = False,
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Delete what ended long ago, with its timeline and logs. Tells what it would do, unless given --yes."""
    from flowledger.cli.actions import prune

    prune.prune(
        older_than=older_than,
        status=status,
        archive=archive,
        delete=yes and not dry_run,
        as_json=as_json,
        database_url=database_url,
        data_dir=data,
    )
