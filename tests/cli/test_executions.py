"""`flowledger executions`: what is listed, found, shown, watched and cancelled, for eyes and for pipes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import PROJECT, Product, Row, emptied

pytestmark = pytest.mark.timeout(120)

MEETING = uuid4()
SOMEBODY = uuid4()


class Ledger:
    """Rows of every kind, made with the ledger's own functions and no worker."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.worker = uuid4()
        self.flows = {
            key: product.sql("select id from flowledger.remember_flow(%s, %s, '', '{}', '')", key, key)[0]["id"]
            for key in ("alpha", "beta")
        }
        self.pending = self._born("alpha", inputs={"secret": "of pending"})
        self.failed = self._ended("alpha", "failed", error_type="shop.NoStock", error_message="none\tleft\nat all")
        self.completed = self._ended("beta", "completed", by=SOMEBODY, meeting=MEETING)
        self.cancelled = self._ended("beta", "cancelled", error_type="Cancelled")
        self.running = self._claimed("beta")
        self.all = [self.pending, self.failed, self.completed, self.cancelled, self.running]

    def _born(
        self, flow: str, *, by: UUID | None = None, meeting: UUID | None = None, inputs: Row | None = None
    ) -> UUID:
        with self.product.as_user(by or self.product.user) as user:
            row = user.execute(
                "select id from flowledger.kickoff(%s, %s, %s)", (flow, Jsonb(inputs or {}), meeting)
            ).fetchone()
        assert row is not None
        return UUID(str(row["id"]))

    def _claimed(self, flow: str, *, by: UUID | None = None, meeting: UUID | None = None) -> UUID:
        execution = self._born(flow, by=by, meeting=meeting)
        self.product.sql(
            "select flowledger.claim(%s, array[%s]::uuid[], array[60]::float8[], 1, '1 hour', array[%s]::uuid[])",
            self.worker,
            self.flows[flow],
            execution,
        )
        return execution

    def _ended(
        self,
        flow: str,
        status: str,
        *,
        by: UUID | None = None,
        meeting: UUID | None = None,
        error_type: str | None = None,
        error_message: str | None = None,
    ) -> UUID:
        execution = self._claimed(flow, by=by, meeting=meeting)
        self.product.sql(
            "select flowledger.append_logs(array[%s]::uuid[], array[fence], array[1], array[now()], array['stdout'], "
            "array['hello from ' || %s]) from flowledger.leases where execution_id = %s",
            execution,
            status,
            execution,
        )
        self.product.sql(
            "select flowledger.finish(%s, fence, %s, %s, %s, %s, null, 1234, 0.5, 3, '{}') "
            "from flowledger.leases where execution_id = %s",
            execution,
            status,
            Jsonb({"state": {}, "result": "ok"}) if status == "completed" else None,
            error_type,
            error_message,
            execution,
        )
        return execution


@pytest.fixture(scope="module")
def ledger(postgres: EmbeddedPostgres) -> Iterator[Ledger]:
    return Ledger(emptied(postgres, PROJECT))


def _ids(ledger: Ledger, *arguments: object) -> list[str]:
    return [row["id"] for row in ledger.product.json("executions", "list", *arguments)["executions"]]


def test_list_is_newest_first_and_holds_everybodys(ledger: Ledger) -> None:
    rows = ledger.product.json("executions", "list")["executions"]
    assert {row["id"] for row in rows} == {str(id_) for id_ in ledger.all}
    started = [row["started_at"] for row in rows]
    assert started == sorted(started, reverse=True)


def test_every_filter_keeps_what_it_names_and_drops_the_rest(ledger: Ledger) -> None:
    an_hour_ahead = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    names = {str(getattr(ledger, name)): name for name in ("pending", "failed", "completed", "cancelled", "running")}
    for arguments, expected in (
        (["--status", "failed"], {"failed"}),
        (["--status", "failed,cancelled"], {"failed", "cancelled"}),
        (["--flow", "alpha"], {"pending", "failed"}),
        (["--flow", "nowhere"], set()),
        (["--mode", "manual"], set(names.values())),
        (["--mode", "scheduled"], set()),
        (["--since", "1h"], set(names.values())),
        (["--since", an_hour_ahead], set()),
        (["--until", "1h"], set()),
        (["--until", an_hour_ahead], set(names.values())),
        (["--meeting", MEETING], {"completed"}),
        (["--by", SOMEBODY], {"completed"}),
        (["--by", "me"], set(names.values()) - {"completed"}),
        (["--by", "me", "--status", "completed"], set()),
    ):
        assert {names[id_] for id_ in _ids(ledger, *arguments)} == expected, arguments


@pytest.mark.parametrize(
    ("option", "value"),
    [("--status", "done"), ("--since", "yesterday"), ("--by", "ada"), ("--after", "page two")],
)
def test_filter_that_means_nothing_is_refused_by_its_name(ledger: Ledger, option: str, value: str) -> None:
    done = ledger.product.call("executions", "list", option, value, "--json")
    assert done.returncode == 2
    assert option.lstrip("-") in json.loads(done.stderr)["error"]["message"]


def test_pages_are_complete_and_do_not_overlap(ledger: Ledger) -> None:
    seen, after = [], None
    for _ in range(len(ledger.all)):
        page = ledger.product.json("executions", "list", "--limit", 2, *(["--after", after] if after else []))
        seen += [row["id"] for row in page["executions"]]
        after = page["next"]
        if after is None:
            break
    assert len(seen) == len(set(seen)) == len(ledger.all)
    assert seen == _ids(ledger)


def test_piped_list_is_tab_separated_without_heading_and_with_full_ids(ledger: Ledger) -> None:
    done = ledger.product.call("executions", "list")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) == len(ledger.all)
    assert {len(cells) for cells in lines} == {9}
    (failed,) = [cells for cells in lines if cells[0] == "failed"]
    assert failed[1] == str(ledger.failed)
    assert failed[3].endswith("Z")
    assert failed[5:8] == ["1234", "0.5", "manual"]
    assert failed[8] == "shop.NoStock: none left"
    assert "\x1b" not in done.stdout


def test_money_in_json_is_a_string_and_times_are_utc(ledger: Ledger) -> None:
    row = ledger.product.json("executions", "show", ledger.completed)
    assert row["cost_usd"] == "0.5"
    assert row["completed_at"].endswith("Z")
    assert row["flow_key"] == "beta"


def test_execution_is_found_by_id_prefix_key_and_by_being_the_last(ledger: Ledger) -> None:
    product = ledger.product
    key = product.row(ledger.failed)["execution_key"]
    for reference in (ledger.failed, str(ledger.failed)[:13], str(ledger.failed).upper(), key, "@failed"):
        assert product.json("executions", "show", reference)["id"] == str(ledger.failed), reference
    assert product.json("executions", "show", "@last")["id"] == str(ledger.running)


def test_unknown_reference_exits_5(ledger: Ledger) -> None:
    for reference in (uuid4(), "abc", "nothing", "%"):
        done = ledger.product.call("executions", "show", reference, "--json")
        assert (done.returncode, json.loads(done.stderr)["error"]["code"]) == (5, "execution_not_found")


def test_unknown_sign_exits_2(ledger: Ledger) -> None:
    assert ledger.product.call("executions", "show", "@first").returncode == 2


def test_prefix_of_several_exits_5_and_names_them(ledger: Ledger) -> None:
    product = ledger.product
    twins = [UUID(f"abcdef00-0000-4000-8000-00000000000{n}") for n in (1, 2)]
    for twin in twins:
        product.sql(
            "insert into crewai_flow_executions (id, flow_id, execution_key, executed_by) values (%s, %s, %s, %s)",
            twin, ledger.flows["alpha"], f"twin-{twin}", product.user,
        )  # fmt: skip
    try:
        done = product.call("executions", "show", "abcdef00", "--json")
        error = json.loads(done.stderr)["error"]
        assert (done.returncode, error["code"]) == (5, "ambiguous_reference")
        assert all(str(twin) in error["message"] for twin in twins)
    finally:
        product.sql("delete from crewai_flow_executions where id = any (%s)", twins)


def test_show_tells_status_error_input_and_every_step(ledger: Ledger) -> None:
    shown = ledger.product.call("executions", "show", ledger.failed, "--transitions").stdout
    for word in ("✗ failed", str(ledger.failed), "alpha", "shop.NoStock", "none", "pending", "running"):
        assert word in shown
    steps = ledger.product.json("executions", "show", ledger.failed, "--transitions")["transitions"]
    assert [step["to_status"] for step in steps] == ["pending", "running", "failed"]
    assert "of pending" in ledger.product.call("executions", "show", ledger.pending).stdout


@pytest.mark.parametrize(("name", "code"), [("completed", 0), ("failed", 3), ("cancelled", 6)])
def test_watch_of_what_has_ended_answers_at_once_by_its_outcome(ledger: Ledger, name: str, code: int) -> None:
    done = ledger.product.call("executions", "watch", getattr(ledger, name))
    assert done.returncode == code
    assert name in done.stdout


def test_watch_stops_waiting_when_told_and_exits_8(ledger: Ledger) -> None:
    done = ledger.product.call("executions", "watch", ledger.running, "--timeout", "200ms", "--json")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (8, "running")


def test_logs_are_the_flows_own_words(ledger: Ledger) -> None:
    assert ledger.product.call("executions", "logs", ledger.completed).stdout == "hello from completed"
    line = json.loads(ledger.product.call("executions", "logs", ledger.completed, "--json").stdout)
    assert (line["stream"], line["text"], line["sequence"]) == ("stdout", "hello from completed", 1)


def test_cancel_ends_what_waits_and_asks_what_runs(ledger: Ledger) -> None:
    waiting = ledger._born("alpha")
    done = ledger.product.call("executions", "cancel", waiting, ledger.running, ledger.completed)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"{waiting}  cancelled",
        f"{ledger.running}  asked to stop",
        f"{ledger.completed}  had ended already",
    ]
    assert ledger.product.row(waiting)["status"] == "cancelled"


def test_ex_and_ls_are_short_for_executions_list(ledger: Ledger) -> None:
    product = ledger.product
    assert (
        product.call("ex", "ls", "--flow", "alpha").stdout
        == product.call("executions", "list", "--flow", "alpha").stdout
    )
