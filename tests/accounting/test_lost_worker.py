"""A worker that is killed takes its run with it. What it had written is in the row, and so is the call in flight."""

from __future__ import annotations

import json
import shutil
import signal
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import Product, emptied, wait_for
from tests.accounting.conftest import ROOT, environment

if TYPE_CHECKING:
    from stub_llm import StubServer

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def product(
    postgres: EmbeddedPostgres, stub_llm: StubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Product:
    for name, value in environment(stub_llm.url).items():
        monkeypatch.setenv(name, value)
    project = tmp_path / "spender"
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns("__pycache__", "failing.py", "stubborn.py"))
    return emptied(postgres, project)


def test_the_row_of_a_lost_worker_holds_what_was_spent_and_lists_the_call_in_flight(
    product: Product, tmp_path: Path
) -> None:
    settings = {"slots": 1, "lease_seconds": 2, "grace_seconds": 0.5, "poll_seconds": 0.5}
    with product.worker(log=tmp_path / "lost", **settings) as lost:
        execution = product.kickoff("ends", how="nothing")
        wait_for(lambda: _written(product, execution) == ["llm_started", "llm_completed", "llm_started"], seconds=90)
        lost.signal(signal.SIGKILL)
        lost.wait()
    with product.worker(log=tmp_path / "next", ready=False, **settings):
        row = product.ended(execution)
    assert (row["status"], row["error_type"]) == ("failed", "WorkerLost")
    calls = product.sql("select * from flowledger.usage where execution_id = %s order by number", execution)
    assert [(call["status"], call["step"]) for call in calls] == [("completed", "ask"), ("unknown", "wait")]
    ended, open_ = calls
    assert (open_["input_tokens"], open_["cost_usd"]) == (None, None)
    assert open_["model"] == "gpt-4o-mini-stub-slow-20s"
    told = row["metadata"]
    assert row["token_count"] == ended["input_tokens"] + ended["output_tokens"] > 0
    assert (told["usage"]["calls"], told["usage"]["calls_without_end"]) == (2, 1)
    assert told["unreported_models"] == ["gpt-4o-mini-stub-slow-20s"]
    # gpt-4o-mini by its provider's list: $0.15, cached $0.075, and $0.60 for the answer.
    fresh = ended["input_tokens"] - ended["cached_input_tokens"]
    dollars = (
        fresh * Decimal("0.15")
        + ended["cached_input_tokens"] * Decimal("0.075")
        + ended["output_tokens"] * Decimal("0.60")
    ) / 1_000_000
    assert ended["cost_usd"] == dollars == Decimal(told["exact_cost_usd"]), json.dumps(told)


def _written(product: Product, execution: object) -> list[str]:
    rows = product.sql(
        "select kind from flowledger.timeline where execution_id = %s and kind like 'llm%%' order by sequence",
        execution,
    )
    return [row["kind"] for row in rows]
