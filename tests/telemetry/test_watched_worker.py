"""A real worker with a real receiver and a real scraper beside it; and without them, or with broken ones."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import Product, Row, WorkerProcess, emptied, wait_for
from tests.docs.pages import ROOT
from tests.telemetry.otlp import OtlpReceiver, Received
from tests.telemetry.scraping import against_conventions, scraped, total, value

sys.path.append(str(ROOT / "examples"))

from stub_llm import StubServer, environment

pytestmark = pytest.mark.timeout(240)

BRIEF = ROOT / "examples" / "board_brief"
TRIAGE = ROOT / "examples" / "order_triage"
TOKEN = "token-of-the-receiver-4711"


@dataclass(frozen=True)
class Watched:
    """A worker that has run one flow with LLM calls and a tool, and what its watchers know of it."""

    product: Product
    worker: WorkerProcess
    receiver: OtlpReceiver
    stub: StubServer
    row: Row

    @property
    def spans(self) -> list[Received]:
        return self.receiver.spans_of(self.row["id"])

    def scrape(self) -> str:
        return scraped(self.worker.facts("metrics_served")[0]["address"])


@pytest.fixture(scope="module")
def watched(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    log: Path = tmp_path_factory.mktemp("watched") / "log"
    product = emptied(postgres, BRIEF)
    stub = StubServer()
    with OtlpReceiver() as receiver, stub, pytest.MonkeyPatch.context() as patched:
        for name, setting in environment(stub.url).items():
            patched.setenv(name, setting)
        # Where else the secret may stand.
        patched.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{TOKEN}")
        watchers = {"otlp_endpoint": receiver.url, "otlp_headers": f"authorization=Bearer%20{TOKEN}"}
        with product.worker(
            "--metrics-port", 0, log=log, slots=1, poll_seconds=0.5, lease_seconds=2, **watchers
        ) as worker:
            row = product.ended(product.kickoff("board_brief", company="Acme"), seconds=120)
            assert row["status"] == "completed", row
            wait_for(lambda: receiver.spans_of(row["id"]), what="the trace arrives")
            yield Watched(product, worker, receiver, stub, row)


class TestTrace:
    def test_one_trace_with_one_root_that_tells_of_the_row(self, watched: Watched) -> None:
        (root,) = [span for span in watched.spans if span.parent is None]
        assert root.name == "invoke_workflow board_brief"
        assert root.execution == watched.row["id"]
        assert root.attributes["flowledger.execution.key"] == watched.row["execution_key"]
        assert root.attributes["flowledger.execution.status"] == "completed"
        assert root.attributes["flowledger.worker.id"] == watched.worker.id
        assert root.attributes["flowledger.tokens"] == watched.row["token_count"]
        assert (root.service, root.failure) == ("flowledger", None)

    def test_every_step_call_and_tool_has_a_span(self, watched: Watched) -> None:
        names = {span.name for span in watched.spans}
        assert {
            "method read_figures",
            "method write_brief",
            "method hand_over",
            "invoke_workflow FiguresCrew",
            "task read_figures",
            "execute_tool quarterly_figures",
        } <= names
        assert any(name.startswith("invoke_agent") for name in names)

    def test_parents_are_those_of_the_timeline(self, watched: Watched) -> None:
        assert not _with_other_parents_than_recorded(watched.spans, _recorded_parents(watched))
        tool = next(span for span in watched.spans if span.name == "execute_tool quarterly_figures")
        assert _ancestors(tool, watched.spans) == [
            "invoke_agent Financial Analyst",
            "task read_figures",
            "invoke_workflow FiguresCrew",
            "method read_figures",
            "invoke_workflow board_brief",
        ]

    def test_each_thing_is_told_once_and_has_both_ends(self, watched: Watched) -> None:
        assert len([span for span in watched.spans if span.name.startswith("chat ")]) == 3
        assert [span.name for span in watched.spans if "flowledger.end_unseen" in span.attributes] == []

    def test_times_are_real(self, watched: Watched) -> None:
        (root,) = [span for span in watched.spans if span.parent is None]
        assert root.began == _nanoseconds(watched.row["started_at"])
        assert root.ended == _nanoseconds(watched.row["completed_at"])
        # A clock of the run's process and one of the database.
        slack = 100_000_000
        for span in watched.spans:
            assert root.began - slack <= span.began <= span.ended <= root.ended + slack
        assert max(span.ended - span.began for span in watched.spans if span.parent) > 0

    def test_calls_carry_what_the_provider_served(self, watched: Watched) -> None:
        calls = [span for span in watched.spans if span.attributes.get("gen_ai.operation.name") == "chat"]
        assert {span.kind for span in calls} == {"SPAN_KIND_CLIENT"}
        assert {span.attributes["gen_ai.provider.name"] for span in calls} == {"openai"}
        assert all(span.name == f"chat {span.attributes['gen_ai.request.model']}" for span in calls)
        served = watched.stub.stats()
        assert _sum(calls, "gen_ai.usage.input_tokens") == served["prompt_tokens"]
        assert _sum(calls, "gen_ai.usage.output_tokens") == served["completion_tokens"]
        assert _sum(calls, "gen_ai.usage.cache_read.input_tokens") == served["cached_tokens"]
        reasons = [reason for span in calls for reason in span.attributes.get("gen_ai.response.finish_reasons", [])]
        assert sorted(reasons) == ["stop", "stop", "tool_calls"]

    def test_tool_is_named_as_the_conventions_want_it(self, watched: Watched) -> None:
        tools = [span for span in watched.spans if span.name.startswith("execute_tool")]
        assert {span.attributes["gen_ai.operation.name"] for span in tools} == {"execute_tool"}
        assert {span.attributes["gen_ai.tool.name"] for span in tools} == {"quarterly_figures"}

    def test_receiver_gets_its_headers_and_flow_code_does_not(self, watched: Watched) -> None:
        assert watched.receiver.headers["authorization"] == f"Bearer {TOKEN}"
        assert watched.receiver.path == "/v1/traces"
        environments = []
        for process in watched.worker.descendants():
            with suppress(psutil.NoSuchProcess):
                environments.append(process.environ())
        assert [told for told in environments if "OPENAI_API_KEY" in told], "they were really read"
        assert TOKEN not in repr(environments)
        assert TOKEN not in watched.worker.log.read_text()

    def test_prompts_and_answers_stay_here(self, watched: Watched) -> None:
        told = repr(watched.spans)
        assert watched.row["output_state"]["result"][:20] not in told
        assert "You open with the decision" not in told


class TestMetrics:
    def test_what_is_scraped_agrees_with_the_ledger(self, watched: Watched) -> None:
        wait_for(lambda: value(watched.scrape(), "executions_total", flow="board_brief", status="completed"))
        told = watched.scrape()
        assert value(told, "executions_total", flow="board_brief", status="completed") == 1
        seconds = value(told, "execution_duration_seconds_sum", flow="board_brief")
        assert seconds == pytest.approx(watched.row["duration_ms"] / 1000)
        recorded = watched.product.sql(
            "select coalesce(sum(input_tokens + output_tokens), 0)::float as tokens, count(*) as calls, "
            "coalesce(sum(cost_usd), 0)::float as usd from flowledger.usage where execution_id = %s",
            watched.row["id"],
        )[0]
        assert total(told, "tokens_total", flow="board_brief") == recorded["tokens"] == watched.row["token_count"]
        assert total(told, "llm_calls_total", flow="board_brief") == recorded["calls"] == watched.stub.stats()["calls"]
        assert total(told, "cost_usd_total", flow="board_brief") == pytest.approx(recorded["usd"])

    def test_queue_of_a_worker_that_is_idle_is_empty(self, watched: Watched) -> None:
        told = watched.scrape()
        assert value(told, "database_up") == 1
        for gauge in ("queue_depth", "queue_oldest_age_seconds", "executions_running"):
            assert value(told, gauge, flow="board_brief") == 0

    def test_names_follow_the_conventions(self, watched: Watched) -> None:
        assert against_conventions(text_string_to_metric_families(watched.scrape())) == []

    def test_only_this_machine_may_ask(self, watched: Watched) -> None:
        address = watched.worker.facts("metrics_served")[0]["address"]
        assert address.startswith("http://127.0.0.1:")

    def test_log_line_of_an_end_says_how_long_and_how_much(self, watched: Watched) -> None:
        (fact,) = watched.worker.facts("execution_ended")
        assert fact["tokens"] == watched.row["token_count"]
        assert fact["duration_ms"] == pytest.approx(watched.row["duration_ms"], abs=1_000)
        assert watched.worker.facts("leases_renewed") == []


@contextmanager
def _broken(how: str) -> Iterator[str]:
    """A receiver that is away, hangs, or refuses with 500."""
    if how == "away":
        with socket.socket() as taken:
            # Bound and not listening: whoever connects is refused, and nobody else gets the port.
            taken.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{taken.getsockname()[1]}"
    else:
        with OtlpReceiver(how) as receiver:
            yield receiver.url


@pytest.mark.parametrize("how", ["away", "hangs", "refuses"])
def test_broken_receiver_costs_no_execution_and_is_told_once(
    postgres: EmbeddedPostgres, tmp_path: Path, how: str
) -> None:
    product = emptied(postgres, TRIAGE)
    with (
        _broken(how) as url,
        product.worker(log=tmp_path / "log", slots=2, poll_seconds=0.5, otlp_endpoint=url) as worker,
    ):
        for execution in [product.kickoff("order_triage", item="desk") for _ in range(6)]:
            assert product.ended(execution)["status"] == "completed"
        wait_for(lambda: worker.facts("traces_not_sent"), what="the trouble is told")
        assert product.ended(product.kickoff("order_triage", item="desk"))["status"] == "completed"
        worker.signal(signal.SIGTERM)
        assert worker.wait(20) == 0
        assert len(worker.facts("traces_not_sent")) == 1
        assert worker.facts("library_warning") == []
        assert [fact["number"] for fact in worker.facts("traces_lost")] == [7]


def test_flow_that_runs_without_a_worker_is_traced_as_well(postgres: EmbeddedPostgres) -> None:
    product = emptied(postgres, TRIAGE)
    with OtlpReceiver() as receiver:
        done = product.run("run", "order_triage", "-i", "item=desk", otlp_endpoint=receiver.url)
        assert done.returncode == 0, done.stderr
        (row,) = product.sql("select id from crewai_flow_executions")
        assert "method pack" in {span.name for span in receiver.spans_of(row["id"])}


_LOADED = """
import atexit, sys
from flowledger.cli import main
watching = ("opentelemetry", "prometheus_client")
atexit.register(lambda: print("LOADED", *[name for name in watching if name in sys.modules], file=sys.stderr))
sys.argv = ["flowledger", "worker"]
main()
"""


@pytest.mark.parametrize(
    ("settings", "loaded"),
    [
        ({}, "LOADED"),
        ({"otlp_endpoint": "http://127.0.0.1:1"}, "LOADED opentelemetry"),
        ({"metrics_port": 0}, "LOADED prometheus_client"),
    ],
    ids=["off", "traces", "metrics"],
)
def test_what_nobody_asked_for_is_not_even_loaded(
    postgres: EmbeddedPostgres, tmp_path: Path, settings: dict[str, object], loaded: str
) -> None:
    product = emptied(postgres, TRIAGE)
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", _LOADED],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=product.environment(**settings),
        )
    worker = WorkerProcess(process, log)
    try:
        worker.wait_until_ready()
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    finally:
        worker.end()
    assert log.read_text().splitlines()[-1] == loaded


def test_setting_that_cannot_be_used_stops_the_worker_with_its_name(postgres: EmbeddedPostgres) -> None:
    product = emptied(postgres, TRIAGE)
    for settings, name in (
        ({"otlp_endpoint": "collector:4317"}, "otlp_endpoint"),
        ({"metrics_port": 70_000}, "metrics_port"),
    ):
        done = product.run("worker", **settings)
        assert done.returncode == 2
        assert name in done.stderr
        assert "Traceback" not in done.stderr


def _recorded_parents(watched: Watched) -> dict[int, int]:
    """Beginning -> beginning of what encloses it, as the timeline has it; without the flow's own, which is the root."""
    rows = watched.product.sql(
        "select sequence, parent, kind from flowledger.timeline where execution_id = %s and kind like '%%\\_started'",
        watched.row["id"],
    )
    flows = {row["sequence"] for row in rows if row["kind"] == "flow_started" and row["parent"] is None}
    return {row["sequence"]: row["parent"] for row in rows if row["parent"] is not None and row["parent"] not in flows}


def _with_other_parents_than_recorded(spans: list[Received], recorded: dict[int, int]) -> list[str]:
    """Spans whose parent is not the span of the recorded parent; the root, where none is recorded."""
    by_sequence = {span.attributes.get("flowledger.event.sequence", 0): span for span in spans}
    (root,) = [span for span in spans if span.parent is None]
    return [
        span.name
        for sequence, span in by_sequence.items()
        if span is not root and span.parent != by_sequence.get(recorded.get(sequence, -1), root).id
    ]


def test_checker_of_parents_finds_a_wrong_one() -> None:
    def span(id_: int, parent: int | None, **attributes: int) -> Received:
        told = {"flowledger.event.sequence": attributes["sequence"]} if attributes else {}
        parent_id = None if parent is None else bytes([parent])
        return Received(UUID(int=1), bytes([id_]), parent_id, str(id_), "", 0, 0, None, told, (), "")

    spans = [span(1, None), span(2, 1, sequence=2), span(3, 2, sequence=3)]
    assert _with_other_parents_than_recorded(spans, {3: 2}) == []
    assert _with_other_parents_than_recorded(spans, {2: 3}) == ["2", "3"]
    assert _with_other_parents_than_recorded(spans, {}) == ["3"]


def _ancestors(span: Received, spans: list[Received]) -> list[str]:
    by_id = {one.id: one for one in spans}
    names = []
    while span.parent is not None:
        span = by_id[span.parent]
        names.append(span.name)
    return names


def _sum(spans: list[Received], attribute: str) -> int:
    return sum(span.attributes.get(attribute, 0) for span in spans)


def _nanoseconds(at: datetime) -> int:
    return int(at.replace(microsecond=0).timestamp()) * 10**9 + at.microsecond * 1000
