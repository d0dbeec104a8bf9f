"""Options that several commands share. They are only declared here; `flags` makes settings of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

ProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project", "-C", help="The CrewAI project: a directory, file or module. Default: here.", show_default=False
    ),
]
PythonOption = Annotated[
    Path | None, typer.Option("--python", help="The project's interpreter, if it has its own.", show_default=False)
]
DatabaseOption = Annotated[
    str | None,
    typer.Option("--database-url", help="Postgres to use. Default: the embedded one.", show_default=False),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Directory of the embedded Postgres. Default: .flowledger", show_default=False),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", help="Ask through this server. Default: FLOWLEDGER_URL, else the database.", show_default=False
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        help="Who asks the server. FLOWLEDGER_TOKEN keeps it out of the list of processes.",
        show_default=False,
    ),
]
SlotsOption = Annotated[
    int | None, typer.Option("--slots", min=1, max=512, help="Executions to run side by side.", show_default=False)
]
MetricsPortOption = Annotated[
    int | None,
    typer.Option(
        "--metrics-port", min=0, max=65_535, help="Serve Prometheus metrics at this port, 0: any.", show_default=False
    ),
]
HostOption = Annotated[
    str | None, typer.Option("--host", help="Address of the API. Default: 127.0.0.1", show_default=False)
]
PortOption = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65_535, help="Port of the API, 0: any. Default: 8700", show_default=False),
]
PairsOption = Annotated[
    list[str] | None,
    typer.Option("-i", "--set", metavar="KEY=VALUE", help="One input; key=@file reads a file, key:=json takes JSON."),
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Record the execution and leave it to a worker.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def offering(*words: str, listed: bool = False) -> Callable[[str], list[str]]:
    """What the shell is offered for a value. `listed`: the value is a comma-separated list, of which the last grows."""

    def offered(incomplete: str) -> list[str]:
        before, comma, growing = incomplete.rpartition(",") if listed else ("", "", incomplete)
        taken = before.split(",")
        return [f"{before}{comma}{word}" for word in words if word.startswith(growing) and word not in taken]

    return offered
