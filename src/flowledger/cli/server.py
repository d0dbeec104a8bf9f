"""`flowledger server`: serves the API until stopped, apart from any worker."""

from __future__ import annotations

import typer

from flowledger.cli.options import DatabaseOption, DataOption, HostOption, PortOption

app = typer.Typer(add_completion=False)


@app.command()
def server(
    host: HostOption = None,
    port: PortOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Serve the API until stopped. SIGTERM or Ctrl-C lets requests in flight end.

    It runs no flows: that is for `flowledger worker`, any number of each.
    """
    from flowledger.cli.actions import server

    server.server(server_host=host, server_port=port, database_url=database_url, data_dir=data)
