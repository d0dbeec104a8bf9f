"""One run of a worker floods it with events; what runs beside it is told in full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import Product, WorkerProcess, emptied, wait_for

pytestmark = pytest.mark.timeout(180)

FLOWS = Path(__file__).parent.parent / "runner/flows/src/house/floods.py"
MOST_EVENTS = 1_000
TIMES = 60


@pytest.fixture(scope="module")
def product(postgres: EmbeddedPostgres) -> Product:
    return emptied(postgres, FLOWS)


@pytest.fixture(scope="module")
def bounded(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    log = tmp_path_factory.mktemp("bounded") / "log"
    with product.worker(log=log, slots=2, max_events=MOST_EVENTS, poll_seconds=0.5) as worker:
        yield worker


@pytest.mark.parametrize("unbound", [False, True], ids=["bound in the child", "bound in the worker alone"])
def test_of_a_run_beside_a_flood_nothing_is_missing(product: Product, bounded: WorkerProcess, unbound: bool) -> None:
    flood = product.kickoff("floods", times=15_000, unbound=unbound)
    wait_for(lambda: _sequences(product, flood))
    calm = product.ended(product.kickoff("calm", times=TIMES))
    assert product.row(flood)["status"] == "running", "it flooded all the time"
    assert calm["status"] == "completed"
    assert "events_dropped" not in calm["metadata"]
    told = 2 * TIMES + 4
    assert _sequences(product, calm["id"]) == list(range(1, told + 1))
    assert product.logs(calm["id"]) == "".join(f"used {n}\n" for n in range(TIMES))

    flooded = product.ended(flood, seconds=120)
    kept = _sequences(product, flood)
    assert kept[:MOST_EVENTS] == list(range(1, MOST_EVENTS + 1))
    assert len(kept) == MOST_EVENTS + 4
    assert flooded["metadata"]["events_dropped"] == kept[-1] - len(kept)
    assert bounded.facts("records_not_written") == []


def test_without_the_bound_a_flood_is_stored_whole(product: Product, bounded: WorkerProcess, tmp_path: Path) -> None:
    """The control: it is the bound that keeps it out of the ledger."""
    bounded.end()
    with product.worker(log=tmp_path / "log", slots=1, max_events=1_000_000, poll_seconds=0.5):
        flood = product.ended(product.kickoff("floods", times=5_000), seconds=120)
    assert _sequences(product, flood["id"]) == list(range(1, 10_000 + 8 + 1))
    assert "events_dropped" not in flood["metadata"]


def _sequences(product: Product, execution: object) -> list[int]:
    rows = product.sql("select sequence from flowledger.timeline where execution_id = %s order by sequence", execution)
    return [row["sequence"] for row in rows]
