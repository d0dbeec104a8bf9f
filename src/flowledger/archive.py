"""An archive of executions about to be deleted: Parquet files and a manifest, read again before it counts.

Where the rows come from is left to the ledger, whether they are deleted afterwards to the caller. Needs the extra
`archive`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from flowledger import __version__
from flowledger.errors import ArchiveFailed
from flowledger.ledger.retention import Page, Which

MANIFEST = "manifest.json"
FORMAT = 1

_BUFFERED_ROWS = 10_000
_BUFFERED_BYTES = 32 * 1024 * 1024


class Archive:
    """A directory of its own below `parent`, with one file for each table. Without `close` it is incomplete: it has no
    manifest.
    """

    def __init__(self, parent: Path, which: Which, schema_version: int) -> None:
        self._which = which
        self._schema_version = schema_version
        self._began_at = datetime.now(UTC)
        self.directory = parent.absolute() / f"executions-{self._began_at:%Y%m%dT%H%M%S%f}Z"
        self._files: dict[str, _File] = {}

    def __enter__(self) -> Self:
        _require_pyarrow()
        try:
            self.directory.mkdir(parents=True, mode=0o700)
        except OSError as refused:
            raise ArchiveFailed(str(self.directory), str(refused)) from refused
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()

    def add(self, page: Page) -> None:
        """Appends rows. Raises ArchiveFailed."""
        try:
            if page.table not in self._files:
                self._files[page.table] = _File(self.directory / f"{page.table}.parquet", page)
            self._files[page.table].add(page.rows)
        except (OSError, ValueError, TypeError) as refused:
            raise ArchiveFailed(str(self.directory), str(refused)) from refused

    def complete(self) -> dict[str, Any]:
        """Brings everything to the disk, reads it again, writes the manifest and answers with it.

        Raises ArchiveFailed when what was read is not what was written.
        """
        try:
            files = [file.complete() for file in self._files.values()]
            manifest = {
                "format": FORMAT,
                "directory": str(self.directory),
                "made_at": self._began_at.isoformat(),
                "flowledger": __version__,
                "schema_version": self._schema_version,
                "statuses": [str(status) for status in self._which.statuses],
                "ended_before": self._which.ended_before.isoformat(),
                "files": files,
            }
            _write_durably(self.directory / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        except (OSError, ValueError, TypeError) as refused:
            raise ArchiveFailed(str(self.directory), str(refused)) from refused
        return manifest


class _File:
    """One table on its way to the disk. The digest of its rows, taken on the way there, is compared on the way back."""

    def __init__(self, path: Path, page: Page) -> None:
        import pyarrow
        import pyarrow.parquet

        self._path = path
        self._table = page.table
        self._schema = pyarrow.schema(
            [(name, _arrow_type(kind)) for name, kind in zip(page.columns, page.types, strict=True)],
            metadata={"flowledger": __version__, "postgres_types": json.dumps(page.types)},
        )
        self._writer = pyarrow.parquet.ParquetWriter(str(path), self._schema, compression="zstd")
        self._buffer: list[tuple[Any, ...]] = []
        self._buffered_bytes = 0
        self._rows = 0
        self._digest = hashlib.sha256()

    def add(self, rows: Iterable[tuple[Any, ...]]) -> None:
        for row in rows:
            plain = tuple(str(value) if isinstance(value, UUID) else value for value in row)
            text = _text_of(plain)
            self._digest.update(text)
            self._buffer.append(plain)
            self._rows += 1
            self._buffered_bytes += len(text)
            if len(self._buffer) >= _BUFFERED_ROWS or self._buffered_bytes >= _BUFFERED_BYTES:
                self._flush()

    def close(self) -> None:
        self._writer.close()

    def complete(self) -> dict[str, Any]:
        self._flush()
        self._writer.close()
        _sync(self._path)
        self._require_equal()
        return {
            "name": self._path.name,
            "table": self._table,
            "rows": self._rows,
            "columns": self._schema.names,
            "bytes": self._path.stat().st_size,
            "sha256": _sha256_of(self._path),
        }

    def _flush(self) -> None:
        import pyarrow

        if self._buffer:
            columns = [list(column) for column in zip(*self._buffer, strict=True)]
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
            self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))
            self._buffer, self._buffered_bytes = [], 0

    def _require_equal(self) -> None:
        digest, rows = hashlib.sha256(), 0
        for row in _read(self._path):
            digest.update(_text_of(row))
            rows += 1
        if (rows, digest.digest()) != (self._rows, self._digest.digest()):
            raise ArchiveFailed(str(self._path), "what was read again is not what was written")


def _read(path: Path) -> Iterator[tuple[Any, ...]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(str(path)) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _text_of(row: tuple[Any, ...]) -> bytes:
    """The same bytes for the same values, whatever made them: times in UTC, numbers by their value."""
    plain = [value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value for value in row]
    return (json.dumps(plain, default=str, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _arrow_type(kind: str) -> Any:
    import pyarrow

    types = {
        "int4": pyarrow.int32(),
        "int8": pyarrow.int64(),
        "float8": pyarrow.float64(),
        "numeric": pyarrow.decimal128(10, 4),
        "timestamptz": pyarrow.timestamp("us", tz="UTC"),
    }
    return types.get(kind, pyarrow.string())


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401 - asked for before anything is written
    except ImportError as missing:
        raise ArchiveFailed("the archive", "pyarrow is not installed", "Install flowledger[archive].") from missing


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_durably(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text)
    _sync(unfinished)
    unfinished.rename(path)
    _sync(path.parent)
    _sync(path.parent.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
