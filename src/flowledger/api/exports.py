"""`/executions/export`: everything that the filters let through, as a stream.

The list is walked page by page, each in a transaction of its own under the caller's claims: a slow reader holds no
connection, and memory holds one page. What starts or ends meanwhile may be in it or not.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from importlib.util import find_spec
from typing import Annotated, Any, Protocol
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from flowledger.api.asking import Asked, Asking
from flowledger.api.parameters import FilterParameters
from flowledger.api.shapes import in_utc, refusals
from flowledger.errors import InvalidInput
from flowledger.ledger import executions
from flowledger.ledger.executions import Filters

router = APIRouter(prefix="/executions", tags=["executions"])

_PAGE_ROWS = 500
_PAGE_BYTES = 1_048_576
"""As the database holds them, compressed. A single larger row is a page of its own."""

_ROW_GROUP = 10_000

COLUMNS = (
    "id",
    "flow_id",
    "flow_key",
    "execution_key",
    "status",
    "execution_mode",
    "started_at",
    "completed_at",
    "duration_ms",
    "token_count",
    "cost_usd",
    "board_meeting_id",
    "executed_by",
    "error_type",
    "error_message",
    "error_stack",
    "input_state",
    "output_state",
    "metadata",
)
_JSON = ("input_state", "output_state", "metadata")

Row = dict[str, Any]


class Format(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


class ExportParameters(FilterParameters):
    """Which executions, and how they are written."""

    format: Format = Format.JSONL


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={
        **refusals(),
        200: {
            "description": "Every column of each execution, newest first",
            "content": {
                media: {"schema": {"type": "string"}}
                for media in ("text/csv", "application/jsonl", "application/vnd.apache.parquet")
            },
        },
    },
)
async def export(asked: Asked, given: Annotated[ExportParameters, Query()]) -> StreamingResponse:
    """All executions that the filters let through, newest first: CSV, lines of JSON, or Parquet."""
    writer = await to_thread.run_sync(_WRITERS[given.format])
    pages = _pages(asked, given.filters(asked.claims))
    # Whatever is wrong is wrong with the first page already; after it only the connection can be broken off.
    first: list[Row] = await anext(pages, [])
    headers = {"Content-Disposition": f'attachment; filename="executions.{given.format}"', "Cache-Control": "no-store"}
    return StreamingResponse(_written(writer, first, pages), 200, headers, writer.media_type)


async def _pages(asked: Asking, filters: Filters) -> AsyncIterator[list[Row]]:
    after = None
    while True:
        async with asked.session() as session:
            found = await executions.search(session, asked.claims, filters, limit=_PAGE_ROWS, after=after)
        waiting = list(found.ids)
        while waiting:
            async with asked.session() as session:
                rows = await executions.export(session, asked.claims, waiting, _PAGE_BYTES)
            yield rows
            waiting = waiting[waiting.index(rows[-1]["id"]) + 1 :] if rows else []
        if found.next is None:
            return
        after = found.next


async def _written(writer: Writer, first: list[Row], pages: AsyncIterator[list[Row]]) -> AsyncIterator[bytes]:
    yield await to_thread.run_sync(writer.write, first)
    async for page in pages:
        if chunk := await to_thread.run_sync(writer.write, page):
            yield chunk
    yield await to_thread.run_sync(writer.end)


class Writer(Protocol):
    """Rows become bytes of one format. What `write` keeps back comes with a later call."""

    media_type: str

    def write(self, rows: list[Row]) -> bytes: ...
    def end(self) -> bytes: ...


class _Jsonl:
    """JSON as the database holds it: every digit, and any depth."""

    media_type = "application/jsonl"

    def write(self, rows: list[Row]) -> bytes:
        return "".join(self._line(row) for row in rows).encode()

    def end(self) -> bytes:
        return b""

    def _line(self, row: Row) -> str:
        fields = (
            (row[name] or "null") if name in _JSON else json.dumps(_plain(row[name]), ensure_ascii=False)
            for name in COLUMNS
        )
        return "{" + ", ".join(f'"{name}": {text}' for name, text in zip(COLUMNS, fields, strict=True)) + "}\n"


class _Csv:
    """RFC 4180, the names first. A spreadsheet computes a cell that begins like a formula, and its text may be
    anybody's: such a cell begins with an apostrophe here.
    """

    media_type = "text/csv; charset=utf-8"

    def __init__(self) -> None:
        self._began = False

    def write(self, rows: list[Row]) -> bytes:
        text = io.StringIO()
        lines = csv.writer(text)
        if not self._began:
            lines.writerow(COLUMNS)
            self._began = True
        lines.writerows([_guarded(_plain(row[name])) for name in COLUMNS] for row in rows)
        return text.getvalue().encode()

    def end(self) -> bytes:
        return b""


def _guarded(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""OWASP's list: what begins a formula, also full-width, and blanks that a spreadsheet strips before it looks."""


class _Parquet:
    """Columns typed as in the database; JSON, UUIDs and statuses as text."""

    media_type = "application/vnd.apache.parquet"

    def __init__(self) -> None:
        if find_spec("pyarrow") is None:
            raise InvalidInput(
                "format",
                "parquet needs pyarrow, which the server does not have",
                "Ask for csv or jsonl, or install flowledger[archive] on the server.",
            )
        import pyarrow
        import pyarrow.parquet

        kinds = {
            "duration_ms": pyarrow.int32(),
            "token_count": pyarrow.int32(),
            "cost_usd": pyarrow.decimal128(10, 4),
            "started_at": pyarrow.timestamp("us", tz="UTC"),
            "completed_at": pyarrow.timestamp("us", tz="UTC"),
        }
        self._schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
        self._sink = io.BytesIO()
        self._file = pyarrow.parquet.ParquetWriter(_Forward(self._sink), self._schema, compression="zstd")
        self._waiting: list[Row] = []
        self._bytes = 0

    def write(self, rows: list[Row]) -> bytes:
        self._waiting += rows
        self._bytes += sum(len(row[name] or "") for row in rows for name in (*_JSON, "error_stack", "error_message"))
        if len(self._waiting) >= _ROW_GROUP or self._bytes >= 16 * _PAGE_BYTES:
            self._flush()
        return self._taken()

    def end(self) -> bytes:
        self._flush()
        self._file.close()
        return self._taken()

    def _flush(self) -> None:
        import pyarrow

        if self._waiting:
            arrays = [
                pyarrow.array([_typed(row[field.name]) for row in self._waiting], field.type) for field in self._schema
            ]
            self._file.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))
            self._waiting, self._bytes = [], 0

    def _taken(self) -> bytes:
        """What has been written since, which is then forgotten."""
        chunk = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return chunk


class _Forward(io.RawIOBase):
    """A file that only grows: it knows how much was written, and where that went is not its concern."""

    def __init__(self, sink: io.BytesIO) -> None:
        self._sink = sink
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        size = self._sink.write(data)
        self._size += size
        return size


_WRITERS: dict[Format, Callable[[], Writer]] = {Format.CSV: _Csv, Format.JSONL: _Jsonl, Format.PARQUET: _Parquet}


def _typed(value: Any) -> Any:
    """What a column of Parquet holds: money that is no number is not known there."""
    if isinstance(value, UUID):
        return str(value)
    return None if isinstance(value, Decimal) and not value.is_finite() else value


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return in_utc(value).isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, UUID | Decimal) else value
