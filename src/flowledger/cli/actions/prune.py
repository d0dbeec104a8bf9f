"""Tells which executions would go; told to, archives them, reads the archive again, and deletes them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.text import Text

from flowledger.archive import Archive
from flowledger.cli.actions.reading import statuses, with_ledger
from flowledger.cli.flags import moment, settings
from flowledger.cli.opening import Ledger
from flowledger.cli.output import err, local_time, out, plain, write_json, write_table
from flowledger.database.migrate import migrations
from flowledger.domain.status import Status
from flowledger.errors import InvalidInput
from flowledger.ledger import retention
from flowledger.ledger.retention import Aged, Due, Which

_DELETED_AT_ONCE = 500
_ARCHIVED_AT_ONCE = 100


@dataclass(frozen=True)
class Pruned:
    """What was found, and what became of it. `deleted` None: it was only told."""

    due: list[Due]
    deleted: int | None = None
    archive: str | None = None


def prune(
    *, older_than: str, status: str | None, archive: Path | None, delete: bool, as_json: bool, **flags: Any
) -> None:
    chosen = settings(**flags)
    before = moment(older_than, "--older-than")
    assert before is not None
    wanted = statuses(status) or tuple(one for one in Status if one.is_terminal)
    pruned = with_ledger(chosen, lambda open_ledger: _carry_out(open_ledger, wanted, before, archive, delete=delete))
    _tell(pruned, as_json=as_json)


async def _carry_out(
    open_ledger: Ledger, statuses: tuple[Status, ...], ended_before: datetime, archive: Path | None, *, delete: bool
) -> Pruned:
    """Looks, and if `delete` archives and deletes. Raises InvalidInput, ArchiveFailed (nothing is deleted then)."""
    if unended := [str(status) for status in statuses if not status.is_terminal]:
        raise InvalidInput("--status", f"{unended[0]} executions have not ended", "Only what has ended can be pruned.")
    which = Which(statuses, ended_before)
    async with open_ledger.database.session(open_ledger.operator) as session:
        due = await retention.due(session, which)
    if not delete or not due:
        return Pruned(due, deleted=0 if delete else None)
    if archive is None:
        return Pruned(due, await _delete_all(open_ledger, which))
    manifest, archived = await _archive(open_ledger, which, archive)
    return Pruned(due, await _delete(open_ledger, which, manifest, archived), manifest["directory"])


async def _archive(open_ledger: Ledger, which: Which, parent: Path) -> tuple[dict[str, Any], list[UUID]]:
    """Ended executions never change, so what is read page by page is what will be deleted."""
    archived: list[UUID] = []
    place: Aged | None = None
    with Archive(parent, which, migrations()[-1].version) as archive, err.status("Archiving …"):
        while page := await _page(open_ledger, which, _ARCHIVED_AT_ONCE, place):
            ids, place = [aged.id for aged in page], page[-1]
            async with open_ledger.database.session(open_ledger.operator) as session:
                for table in retention.TABLES:
                    archive.add(await retention.read(session, table, ids))
            archived += ids
        return archive.complete(), archived


async def _delete(open_ledger: Ledger, which: Which, manifest: dict[str, Any], executions: list[UUID]) -> int:
    opened = await _open(open_ledger, which, manifest)
    batches = range(0, len(executions), _DELETED_AT_ONCE)
    return sum([await _prune(open_ledger, opened, executions[at : at + _DELETED_AT_ONCE]) for at in batches])


async def _delete_all(open_ledger: Ledger, which: Which) -> int:
    opened, gone, place = await _open(open_ledger, which, None), 0, None
    while page := await _page(open_ledger, which, _DELETED_AT_ONCE, place):
        gone, place = gone + await _prune(open_ledger, opened, [aged.id for aged in page]), page[-1]
    return gone


async def _page(open_ledger: Ledger, which: Which, limit: int, after: Aged | None) -> list[Aged]:
    async with open_ledger.database.session(open_ledger.operator) as session:
        return await retention.due_page(session, which, limit=limit, after=after)


async def _open(open_ledger: Ledger, which: Which, manifest: dict[str, Any] | None) -> int:
    async with open_ledger.database.session(open_ledger.operator) as session:
        return await retention.open_prune(session, which, manifest)


async def _prune(open_ledger: Ledger, opened: int, executions: list[UUID]) -> int:
    async with open_ledger.database.session(open_ledger.operator) as session:
        return await retention.prune(session, opened, executions)


def _tell(pruned: Pruned, *, as_json: bool) -> None:
    """What was found on stdout, what became of it on stderr."""
    count = sum(due.executions for due in pruned.due)
    if as_json:
        write_json(
            {"executions": count, "deleted": pruned.deleted, "archive": pruned.archive, "due": plain(pruned.due)}
        )
        return
    write_table(
        ("FLOW", "STATUS", "EXECUTIONS", "FIRST STARTED", "LAST STARTED"),
        [
            (
                due.flow_key,
                str(due.status),
                f"{due.executions:,}",
                local_time(due.first_started_at),
                local_time(due.last_started_at),
            )
            for due in pruned.due
        ],
        right=("EXECUTIONS",),
    )
    if pruned.deleted is None:
        err.print(Text(f"{count:,} executions would be deleted; nothing was. --yes deletes them.", "dim"))
        return
    out.print(f"{pruned.deleted:,} executions deleted" + (f", archived in {pruned.archive}" if pruned.archive else ""))
