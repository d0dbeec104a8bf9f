"""What Prometheus is told of a server: what was asked, what is open, what waits; to operators alone."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from flowledger.database.session import PoolUse
from flowledger.telemetry.requests import Counted, RequestMetrics
from tests.api.answers import field_of, refused, told
from tests.api.conftest import CAROL
from tests.api.watching import watching
from tests.ledger.law import ALICE, born, claim
from tests.telemetry.scraping import against_conventions, total, value

AT = "/metrics"


def scraped(client: httpx.Client) -> str:
    answer = client.get(AT)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return answer.text


def test_requests_are_counted_by_method_template_and_status(as_alice, as_operator, alice, flow):
    execution = born(alice, flow)

    def asked(**labels: str) -> float:
        return total(scraped(as_operator), "api_requests_total", **labels)

    shown = {"method": "GET", "route": "/executions/{reference}"}
    before = asked(**shown, status="200"), asked(**shown, status="404"), asked(route="none", status="404")
    for _ in range(3):
        told(as_alice.get(f"/api/v1/executions/{execution}"))
    refused(as_alice.get("/api/v1/executions/00000000"), 404)
    as_alice.get("/api/v1/nothing/secret-of-alice")
    as_alice.request("PROPFIND", "/api/v1/executions")
    after = asked(**shown, status="200"), asked(**shown, status="404"), asked(route="none", status="404")
    assert tuple(now - then for now, then in zip(after, before, strict=True)) == (3, 1, 1)
    text = scraped(as_operator)
    assert total(text, "api_request_duration_seconds_count", **shown) >= 4
    assert total(text, "api_requests_total", method="other") >= 1


def test_nothing_tells_who_asked_or_for_what(as_alice, as_operator, alice, flow):
    execution = born(alice, flow)
    as_alice.get(f"/api/v1/executions/{execution}", params={"secret": "s3cret"})
    as_alice.get(f"/api/v1/{execution}")
    text = scraped(as_operator)
    for hidden in (str(execution), str(ALICE), str(CAROL), "s3cret"):
        assert hidden not in text
    labels = {name for family in text_string_to_metric_families(text) for one in family.samples for name in one.labels}
    assert labels == {"method", "route", "status", "le", "flow"}


def test_the_queue_the_pool_and_the_streams_are_told_as_they_are(server, as_operator, alice, worker, flow):
    for _ in range(3):
        born(alice, flow)
    claim(worker, flow, slots=1)
    text = scraped(as_operator)
    assert value(text, "queue_depth", flow="FLOW") == 2
    assert value(text, "executions_running", flow="FLOW") == 1
    assert value(text, "database_up") == 1
    assert value(text, "pool_connections_limit") == 8
    assert 1 <= (value(text, "pool_connections_open") or 0) <= 8

    async def watched() -> float | None:
        async with watching(server.url, ALICE, "executions"):
            return value(await asyncio.to_thread(scraped, as_operator), "api_streams")

    assert asyncio.run(watched()) == server.streams + 1 == 1


def test_metrics_are_for_operators(server, as_alice, database):
    assert refused(as_alice.get(AT), 403)["code"] == "permission_refused"
    with server.as_() as stranger:
        refused(stranger.get(AT), 401)


def test_a_parameter_is_refused_by_its_name(as_operator):
    assert field_of(refused(as_operator.get(AT, params={"name": "x"}), 422)) == "name"


def test_names_are_as_prometheus_wants_them(as_operator, flow):
    families = list(text_string_to_metric_families(scraped(as_operator)))
    assert len(families) >= 10
    assert against_conventions(families) == []
    assert against_conventions([GaugeMetricFamily("flowledger_wait_ms", "")]) != []


def test_without_the_database_only_the_process_is_told():
    text = RequestMetrics().exposition(None, PoolUse(0, 0, 8, 3), 0).decode()
    assert value(text, "database_up") == 0
    assert value(text, "pool_requests_waiting") == 3
    assert value(text, "queue_depth", flow="FLOW") is None


async def test_a_fault_and_a_client_that_left_are_counted_too():
    metrics = RequestMetrics()

    async def breaks(*_: Any) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await Counted(breaks, metrics)({"type": "http", "method": "GET"}, None, None)  # type: ignore[arg-type]
    text = metrics.exposition([], PoolUse(0, 0, 8, 0), 0).decode()
    assert value(text, "api_requests_total", method="GET", route="none", status="none") == 1
