"""The stage on an empty ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Database
from flowledger.domain.flow import Flow
from flowledger.ledger import flows
from tests.telemetry.stage import Stage


@pytest.fixture
async def stage(database: EmbeddedPostgres) -> AsyncIterator[Stage]:
    async with (
        Database(database.url("flowledger_worker"), most_connections=3) as service,
        Database(database.url("flowledger_api"), most_connections=2) as api,
    ):
        async with service.service() as connection:
            (known,) = await flows.remember(connection, [Flow("good", "Good", "", "m:Good", None, {}, "", "1")])
        yield Stage(service, api, known.id)
