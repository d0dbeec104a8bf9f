"""A full disk stops claims, says so once, and costs nothing but time. The disk is a small file system of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.migrate import migrate
from tests.acceptance.product import PROJECT, Product, wait_for

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=220m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a file system of its own needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_claims_and_everything_goes_on_when_there_is_room(disk: Path, tmp_path: Path) -> None:
    with EmbeddedPostgres.start(disk / "data") as postgres:
        migrate(postgres.url("flowledger"))
        product = Product(postgres, PROJECT, uuid4())
        with product.worker(
            log=tmp_path / "log", slots=1, poll_seconds=0.5, lease_seconds=5, grace_seconds=1
        ) as worker:
            before = product.ended(product.kickoff("good"))
            ballast = _fill(disk)
            _write_until_there_is_no_room(product)
            wait_for(lambda: worker.facts("claim_failed"), seconds=30)
            ballast.unlink()
            wait_for(lambda: worker.facts("claim_failed_over"), seconds=90)
            assert len(worker.facts("claim_failed")) <= 3, "told when it changes, and not every second"
            assert product.row(before["id"]) == before
            assert product.ended(product.kickoff("good"))["status"] == "completed"
            assert worker.process.poll() is None


def _fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    room = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
    return ballast


def _write_until_there_is_no_room(product: Product) -> None:
    """Until no more write-ahead log fits: Postgres itself ends then, and cannot come back before there is room."""
    with suppress(psycopg.Error):
        for _ in range(100):
            product.sql("select pg_logical_emit_message(true, 'ballast', repeat('x', 1000000))")
