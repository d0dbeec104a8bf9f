"""`flowledger run FLOW`: starts one execution and stays with it until it has ended."""

from __future__ import annotations

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
)
from flowledger.domain.priority import HIGHEST_PRIORITY
from flowledger.domain.reach import OnReach

app = typer.Typer(add_completion=False)


@app.command()
def run(
    flow: Annotated[str, typer.Argument(help="Key, class name or entry point of the flow.", show_default=False)],
    pairs: PairsOption = None,
    input_file: Annotated[
        str | None, typer.Option("--input", metavar="FILE|-", help="A JSON object of inputs from a file or stdin.")
    ] = None,
    json_input: Annotated[
        str | None, typer.Option("--json-input", metavar="JSON", help="A JSON object of inputs.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="Wall-clock limit, such as 90s, 5m, 1h.", show_default=False)
    ] = None,
    queue_timeout: Annotated[
        str | None, typer.Option(help="How long it may wait for a worker; then it ends as timeout.", show_default=False)
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            min=-HIGHEST_PRIORITY,
            max=HIGHEST_PRIORITY,
            help="Higher starts sooner; 0 if not given.",
            show_default=False,
        ),
    ] = None,
    budget_usd: Annotated[
        str | None, typer.Option(help="The most that it may spend, such as 0.50.", show_default=False)
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(min=0, help="The most tokens that it may use.", show_default=False)
    ] = None,
    on_budget: Annotated[
        OnReach | None,
        typer.Option(help="What happens when a budget is reached; stop if not given.", show_default=False),
    ] = None,
    meeting: Annotated[
        UUID | None, typer.Option(help="The board meeting this run belongs to.", show_default=False)
    ] = None,
    detach: DetachOption = False,
    as_json: JsonOption = False,
    project: ProjectOption = None,
    python: PythonOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Run a flow and watch it; exits by its outcome: 0 completed, 3 failed, 6 cancelled, 7 timeout."""
    from flowledger.cli.actions import run

    run.run(
        flow=flow,
        pairs=pairs,
        input_file=input_file,
        json_input=json_input,
        timeout=timeout,
        queue_timeout=queue_timeout,
        priority=priority,
        budget_usd=budget_usd,
        budget_tokens=budget_tokens,
        on_budget=on_budget,
        meeting=meeting,
        detach=detach,
        as_json=as_json,
        project=project,
        python=python,
        url=url,
        token=token,
        database_url=database_url,
        data_dir=data,
    )
