"""What is counted: facts as they are logged, executions by their rows, the queue when somebody asks."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import pytest
import structlog
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from flowledger.cli.actions.observing import Observers
from flowledger.database.session import Database
from flowledger.domain.execution import NewExecution
from flowledger.domain.status import Status
from flowledger.domain.usage import CallStatus, Usage
from flowledger.errors import InvalidInput
from flowledger.ledger import executions
from flowledger.ledger.executions import Ended
from flowledger.ledger.usage import Spent
from flowledger.settings import Settings
from flowledger.telemetry.ended import EndedExecutions
from flowledger.telemetry.logs import configure_logs
from flowledger.telemetry.metrics import Metrics
from flowledger.telemetry.scrapes import EndCounter, MetricsServer, QueueGauges
from tests.docs.pages import ROOT
from tests.telemetry.scraping import against_conventions, scraped, total, value
from tests.telemetry.stage import ALICE, Stage

ENDED = Ended("good", Status.COMPLETED, None, 1_500, 0)
SPENT = Spent("good", "gpt-x", CallStatus.COMPLETED, 3, 1, Usage(100, 30, 20, 50, 10), Decimal("0.25"))


def text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_executions_are_counted_by_flow_and_status_and_their_seconds_fall_into_buckets() -> None:
    metrics = Metrics()
    metrics.count([ENDED, ENDED, Ended("good", Status.TIMEOUT, "QueueTimeout", None, 0)], [])
    assert value(text(metrics), "executions_total", flow="good", status="completed") == 2
    assert value(text(metrics), "executions_total", flow="good", status="timeout") == 1
    assert value(text(metrics), "execution_duration_seconds_count", flow="good") == 2
    assert value(text(metrics), "execution_duration_seconds_sum", flow="good") == 3.0
    assert value(text(metrics), "execution_duration_seconds_bucket", flow="good", le="1.0") == 0
    assert value(text(metrics), "execution_duration_seconds_bucket", flow="good", le="2.5") == 2


def test_each_token_is_in_one_class_so_that_classes_add_up() -> None:
    metrics = Metrics()
    metrics.count([], [SPENT])
    told = {
        name: value(text(metrics), "tokens_total", flow="good", model="gpt-x", **{"class": name})
        for name in ("input", "cached_input", "cache_write", "output", "reasoning")
    }
    assert told == {"input": 50, "cached_input": 30, "cache_write": 20, "output": 40, "reasoning": 10}
    assert total(text(metrics), "tokens_total") == SPENT.usage.total
    assert value(text(metrics), "cost_usd_total", flow="good", model="gpt-x") == 0.25
    assert value(text(metrics), "llm_calls_total", flow="good", model="gpt-x", status="completed") == 3
    assert value(text(metrics), "llm_calls_of_unknown_cost_total", flow="good", model="gpt-x") == 1


def test_models_are_bounded_though_a_flow_may_invent_them() -> None:
    metrics = Metrics()
    metrics.count([], [Spent("good", f"m{n}", CallStatus.COMPLETED, 1, 0, Usage(), Decimal(0)) for n in range(1_000)])
    assert text(metrics).count("flowledger_llm_calls_total{") == 101
    assert value(text(metrics), "llm_calls_total", flow="good", model="other", status="completed") == 900


def test_budget_stops_and_dropped_events_are_counted_by_flow() -> None:
    metrics = Metrics()
    metrics.count([Ended("good", Status.FAILED, "BudgetExceeded", 10, 7)], [])
    assert value(text(metrics), "budget_refusals_total", flow="good") == 1
    assert value(text(metrics), "events_dropped_total", flow="good") == 7


@pytest.mark.parametrize(
    ("fact", "name", "number"),
    [
        ({"event": "leases_renewed", "number": 4}, "lease_renewals_total", 4),
        ({"event": "lease_lost"}, "leases_lost_total", 1),
        ({"event": "lease_unsure"}, "leases_given_up_total", 1),
        ({"event": "execution_reaped", "status": "failed"}, "executions_reaped_total", 1),
        ({"event": "record_dropped"}, "records_refused_total", 1),
        ({"event": "traces_dropped", "number": 3}, "traces_dropped_total", 3),
    ],
)
def test_facts_are_counted_by_their_names(fact: dict[str, Any], name: str, number: int) -> None:
    metrics = Metrics()
    assert metrics.hear(None, "info", fact) is fact
    metrics.hear(None, "info", {"event": "something_else"})
    assert value(text(metrics), name) == number


def test_every_fact_that_is_counted_is_logged_somewhere() -> None:
    """A renamed fact would else be counted no more, in silence."""
    source = "".join(file.read_text() for file in (ROOT / "src").rglob("*.py") if file.name != "metrics.py")
    assert [fact for fact in Metrics()._by_fact if f'"{fact}"' not in source] == []


class TestFactsBelowTheLevel:
    def test_are_heard_and_not_written(self, capsys: pytest.CaptureFixture[str]) -> None:
        heard: list[str] = []
        configure_logs("json", listeners=[lambda _, __, fact: (heard.append(fact["event"]), fact)[1]])
        structlog.get_logger().debug("leases_renewed", number=1)
        structlog.get_logger().info("worker_ready")
        assert heard == ["leases_renewed", "worker_ready"]
        assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["worker_ready"]

    def test_are_not_even_made_when_nobody_listens(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure_logs("json")
        structlog.get_logger().debug("leases_renewed", number=1)
        assert capsys.readouterr().err == ""


async def test_ended_executions_are_counted_by_what_the_ledger_holds(stage: Stage) -> None:
    metrics = Metrics()
    first, second = (
        await stage.finished(events_dropped="as many as a user likes"),
        await stage.finished(events_dropped=3),
    )
    failures: list[Exception] = []
    ended = EndedExecutions()
    for execution in (first, second):
        ended.hear(None, "info", {"event": "execution_ended", "execution": str(execution), "answer": "ok"})
    counter = EndCounter(stage.service, metrics, ended, failed=failures.append, worked=lambda: None)
    counting = asyncio.create_task(counter.keep_counting())
    await asyncio.wait_for(ended.all_settled(), 20)
    counting.cancel()
    assert failures == []
    assert value(text(metrics), "executions_total", flow="good", status="completed") == 2
    assert value(text(metrics), "llm_calls_total", flow="good", model="gpt-x", status="completed") == 2
    assert total(text(metrics), "tokens_total", flow="good", model="gpt-x") == 24
    assert value(text(metrics), "cost_usd_total", flow="good", model="gpt-x") == pytest.approx(24e-6)
    assert value(text(metrics), "events_dropped_total", flow="good") == 3


async def test_queue_is_read_when_somebody_scrapes(stage: Stage) -> None:
    metrics = Metrics()
    metrics.registry.register(QueueGauges(stage.service, asyncio.get_running_loop()))
    await stage.claimed()
    async with stage.api.session(ALICE) as session:
        for _ in range(2):
            await executions.record(session, NewExecution("good"))
    told = await asyncio.to_thread(text, metrics)
    assert value(told, "database_up") == 1
    assert value(told, "queue_depth", flow="good") == 2
    assert value(told, "executions_running", flow="good") == 1
    assert 0 < (value(told, "queue_oldest_age_seconds", flow="good") or 0) < 60
    assert against_conventions(text_string_to_metric_families(told)) == []


async def test_without_the_database_the_rest_is_told_all_the_same() -> None:
    nobody = Database("postgresql://flowledger@127.0.0.1:1/none", most_connections=1)
    metrics = Metrics()
    metrics.registry.register(QueueGauges(nobody, asyncio.get_running_loop()))
    metrics.count([ENDED], [])
    told = await asyncio.to_thread(text, metrics)
    assert (value(told, "database_up"), value(told, "queue_depth", flow="good")) == (0, None)
    assert value(told, "executions_total", flow="good", status="completed") == 1


def test_taken_port_is_told_by_its_setting() -> None:
    with MetricsServer(Metrics(), "127.0.0.1", 0) as first:
        address = f"http://127.0.0.1:{first._server.server_port}/metrics"
        assert "flowledger_lease_renewals_total" in scraped(address)
        with pytest.raises(InvalidInput, match=r"setting metrics_port: 127\.0\.0\.1:.* Address already in use"):
            MetricsServer(Metrics(), "127.0.0.1", first._server.server_port)


def test_nobody_watches_unless_asked_to() -> None:
    assert (Observers(Settings()).listeners, Observers(Settings()).connections) == ([], 0)
    watched = Observers(Settings(metrics_port=0, otlp_endpoint="http://127.0.0.1:1"))
    assert (len(watched.listeners), watched.connections) == (3, 2)


class TestTheCheckersFindWhatTheyShould:
    @pytest.mark.parametrize(
        ("name", "kind", "documentation"),
        [
            ("queue_depth", "gauge", "x"),
            ("flowledger_duration_ms", "histogram", "x"),
            ("flowledger_queue_total", "gauge", "x"),
            ("flowledger_queue", "gauge", ""),
        ],
    )
    def test_a_name_against_conventions(self, name: str, kind: str, documentation: str) -> None:
        assert against_conventions([Metric(name, documentation, kind)]) == [name]

    def test_a_value_that_is_not_there(self) -> None:
        assert value("flowledger_a 1\n", "a", flow="x") is None
        assert value("flowledger_a 1\n", "a") == 1
