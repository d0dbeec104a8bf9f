"""Looks at machine, project and database, and gives a remedy for each thing found wanting."""

from __future__ import annotations

import asyncio
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import typer
from rich.text import Text

from flowledger import __version__, registry
from flowledger.cli.exits import Exit
from flowledger.cli.flags import settings
from flowledger.cli.opening import Addresses, addresses, require_current, storage
from flowledger.cli.output import out, write_json
from flowledger.database import check
from flowledger.database.session import Claims, Database, connected
from flowledger.domain.project import Project
from flowledger.errors import FlowledgerError
from flowledger.runner.process import Template
from flowledger.settings import Settings

_LEAST_FREE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `good` None: it works, but could do better. `remedy` empty: nothing is to be done."""

    subject: str
    good: bool | None
    told: str
    remedy: str = ""


def doctor(*, as_json: bool, **flags: Any) -> None:
    chosen = settings(**flags)
    findings = []
    for finding in _look(chosen):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        write_json(findings)
    if any(finding.good is False for finding in findings):
        raise typer.Exit(Exit.ERROR)


def _look(chosen: Settings) -> Iterator[Finding]:
    yield Finding("flowledger", True, f"{__version__} on Python {platform.python_version()}, {platform.system()}")
    yield _disk(chosen)
    yield from _database(chosen)
    try:
        found = registry.locate(chosen.project, chosen.python)
    except FlowledgerError as error:
        yield _wrong("project", error)
        return
    yield Finding("project", True, f"{found.root} under {found.python}")
    yield from _flows(chosen, found)
    yield from asyncio.run(_template(chosen, found))


def _disk(chosen: Settings) -> Finding:
    place = chosen.data_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    told = f"{free / 1e9:.1f} GB free below {place}"
    if free < _LEAST_FREE_BYTES:
        return Finding("disk", False, told, "Free some room, or move the data directory with --data.")
    return Finding("disk", True, told)


def _database(chosen: Settings) -> Iterator[Finding]:
    try:
        with addresses(chosen) as where:
            kind = (
                f"embedded, in {where.embedded.data_dir}" if where.embedded else "as named by FLOWLEDGER_DATABASE_URL"
            )
            yield Finding("postgres", True, f"{asyncio.run(_server_version(where))}, {kind}")
            yield from _schema(where)
    except FlowledgerError as error:
        yield _wrong("postgres", error)


async def _server_version(where: Addresses) -> str:
    async with Database(where.api, most_connections=1) as database, database.service() as connection:
        row = await (await connection.execute("select split_part(version(), ' on ', 1) as version")).fetchone()
        assert row is not None
        return str(row["version"])


def _schema(where: Addresses) -> Iterator[Finding]:
    try:
        require_current(where)
        with connected(where.owner) as connection:
            differences = check.differences(connection)
    except FlowledgerError as error:
        yield _wrong("schema", error)
        return
    if differences:
        told = f"{len(differences)} differences, the first: {differences[0].sentence}"
        yield Finding("schema", False, told, "`flowledger db check` lists all, each with its remedy.")
    else:
        yield Finding("schema", True, "as it should be")
    yield from asyncio.run(_permissions(where))


async def _permissions(where: Addresses) -> list[Finding]:
    """Whether the login may act as a user, as an operator and as a worker."""
    findings = []
    trials: tuple[tuple[str, str, Callable[[Database], object]], ...] = (
        ("users", where.api, lambda database: database.session(Claims(None))),
        ("operators", where.api, lambda database: database.session(Claims.of_operator())),
    )
    for subject, url, opened in trials:
        try:
            async with Database(url, most_connections=1) as database, opened(database) as connection:  # type: ignore[attr-defined]
                await connection.execute("select 1 from public.crewai_flow_executions limit 1")
            findings.append(Finding(f"role for {subject}", True, "may be taken"))
        except FlowledgerError as error:
            findings.append(
                _wrong(f"role for {subject}", error, "Grant anon, authenticated and service_role to the login.")
            )
    return findings


def _flows(chosen: Settings, found: Project) -> Iterator[Finding]:
    try:
        discovery = registry.discover(found, seconds=chosen.import_seconds, secrets=(), storage=storage(chosen))
    except FlowledgerError as error:
        yield _wrong("flows", error)
        return
    yield Finding("crewai", True, f"{discovery.crewai_version} on Python {discovery.python_version}")
    names = ", ".join(flow.key for flow in discovery.flows)
    yield Finding(
        "flows",
        bool(names),
        names or "none found",
        "" if names else "Define a class that derives from crewai.flow.Flow.",
    )
    for broken in discovery.broken:
        yield Finding(
            "flows", False, f"{broken.module}: {broken.error_type}: {broken.error_message}", "Mend the import."
        )


async def _template(chosen: Settings, found: Project) -> list[Finding]:
    try:
        template = await Template.start(
            found, secrets=(), storage=storage(chosen), import_seconds=chosen.import_seconds
        )
    except FlowledgerError as error:
        return [_wrong("warm start", error)]
    try:
        findings = [
            Finding("isolation", True, "each execution in a PID namespace of its own")
            if template.isolation == "namespace"
            else Finding(
                "isolation",
                None,
                "by sweeping: a process that outlives its execution dies when a worker next looks",
                "Allow user namespaces (sysctl kernel.unprivileged_userns_clone=1), or run the worker as root.",
            )
        ]
        findings += [Finding("fork safety", None, warning) for warning in template.warnings]
        if not template.warnings:
            findings.append(Finding("fork safety", True, "the project starts no threads when it is imported"))
        return findings
    finally:
        await template.close()


def _wrong(subject: str, error: FlowledgerError, remedy: str = "") -> Finding:
    return Finding(subject, False, error.title, error.hint or remedy)


def _show(finding: Finding) -> None:
    sign, style = {True: ("✓", "green"), None: ("!", "yellow"), False: ("✗", "red")}[finding.good]
    out.print(Text.assemble((sign, style), f" {finding.subject:<20}", finding.told))
    if finding.remedy:
        out.print(Text(f"  {'':<20}{finding.remedy}", "dim"))
