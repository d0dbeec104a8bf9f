"""The same command, straight to the database and through a server: the same words, the same JSON, the same exit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from flowledger.domain.dimension import Dimension
from tests.acceptance.product import PROJECT, Product, emptied, wait_for
from tests.api.serving import SECRET, signed
from tests.client.telling import told, wrote
from tests.ledger.law import append_usage, finish, running, used

MEETING = UUID("bea4d000-0000-4000-8000-000000000009")
GRAPH = {"nodes": {"begin": {}}, "edges": [], "start_methods": ["begin"], "router_methods": []}
SCHEMA = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}


class Stage:
    """One ledger with an execution of every end, and a server before it."""

    def __init__(self, product: Product, url: str) -> None:
        self.product = product
        self.server = {
            "url": url,
            "token": signed(product.user, role="service_role", exp=int(time.time()) + 600),
        }
        with product.connection("flowledger_worker") as worker, product.as_user(product.user) as user:
            self.flow = worker.execute(
                "select id from flowledger.remember_flow('FLOW', 'Flow', '', %s, '')",
                [Jsonb({"input_schema": SCHEMA, "fingerprint": "1", "entry_point": "shop.main:Shop", **GRAPH})],
            ).fetchone()["id"]
            self.pending = product.kickoff("FLOW", topic="waits")
            self.ended = {
                status: self._ended(worker, user, status) for status in ("completed", "failed", "cancelled", "timeout")
            }

    def _ended(self, worker: Any, user: Any, status: str) -> UUID:
        held = running(user, worker, self.flow, input_state={"topic": status}, board_meeting_id=MEETING)
        told(worker, held, 1, 2, 3)
        wrote(worker, held, "one\n", "two\n")
        append_usage(worker, held, used(1), used(2, price=None, cost_usd=None))
        outcome = {"error_type": None if status == "completed" else "shop.NoStock", "tokens": 220}
        output = {"result": [1.5, None, "x"]} if status == "completed" else None
        finish(worker, held["execution_id"], held["fence"], status, cost=Decimal("0.0100"), output=output, **outcome)
        return UUID(str(held["execution_id"]))

    def here(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.product.call(*arguments)

    def there(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.product.call(*arguments, **self.server)


@pytest.fixture(scope="module")
def stage(postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    product = emptied(postgres, PROJECT)
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "flowledger", "server", "--port", "0"],
            env=product.environment(jwt_secret=SECRET),
            stdout=out,
            stderr=out,
        )
    try:
        ready = wait_for(lambda: re.search(r'"url": "([^"]+)"', log.read_text()), what=log.read_text)
        yield Stage(product, ready[1])
    finally:
        server.terminate()
        server.wait(20)


def same(stage: Stage, *arguments: object, code: int = 0) -> str:
    """What the command writes to stdout, which is the same both ways; and so is what it writes beside it."""
    here, there = stage.here(*arguments), stage.there(*arguments)
    assert (there.stdout, there.stderr, there.returncode) == (here.stdout, here.stderr, here.returncode)
    assert here.returncode == code, here.stderr
    return here.stdout


# -- Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ([], 5),
        (["--status", "failed,timeout"], 2),
        (["--flow", "FLOW", "--mode", "manual", "--since", "1h", "--by", "me"], 5),
        (["--meeting", MEETING], 4),
        (["--until", "1h"], 0),
        (["--by", uuid4()], 0),
    ],
)
def test_lists_are_the_same(stage, filters, count):
    assert len(json.loads(same(stage, "executions", "list", *filters, "--json"))["executions"]) == count
    assert len(same(stage, "executions", "list", *filters).splitlines()) == count


def test_pages_are_the_same_though_their_marks_are_not(stage):
    for ask in (stage.here, stage.there):
        seen, after = [], []
        while after is not None:
            page = json.loads(ask("executions", "list", "--limit", 2, *after, "--json").stdout)
            seen += [row["id"] for row in page["executions"]]
            after = None if page["next"] is None else ["--after", page["next"]]
        assert len(seen) == len(set(seen)) == 5


def test_whole_executions_are_the_same(stage):
    everything = ("--transitions", "--state", "--error", "--timeline", "--usage")
    for execution in (stage.ended["completed"], stage.ended["failed"]):
        row = json.loads(same(stage, "executions", "show", execution, *everything, "--json"))
        assert (row["cost_usd"], len(row["timeline"]), len(row["usage"])) == ("0.01", 3, 2)
        assert same(stage, "executions", "show", execution, *everything)
    assert same(stage, "executions", "show", "@last")
    assert json.loads(same(stage, "executions", "show", "@failed", "--json"))["id"] == str(stage.ended["failed"])


def test_ends_are_the_same_for_whoever_watches(stage):
    for status, code in {"completed": 0, "failed": 3, "cancelled": 6, "timeout": 7}.items():
        watched = same(stage, "executions", "watch", stage.ended[status], "--json", code=code)
        assert json.loads(watched)["status"] == status
    same(stage, "executions", "watch", stage.ended["failed"], code=3)
    assert json.loads(same(stage, "executions", "watch", stage.pending, "--timeout", "0.1", "--json", code=8))


def test_logs_are_the_same(stage):
    assert same(stage, "executions", "logs", stage.ended["failed"]) == "one\ntwo\n"
    assert len(same(stage, "executions", "logs", stage.ended["failed"], "--follow", "--json").splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["executions", "show", "abcdef12"], 5),
        (["executions", "show", "@first"], 2),
        (["executions", "watch", "no-such-key"], 5),
        (["executions", "logs", uuid4()], 5),
        (["executions", "cancel", "no-such-key"], 5),
        (["executions", "rerun", "no-such-key"], 5),
        (["executions", "list", "--status", "done"], 2),
        (["executions", "list", "--since", "nonsense"], 2),
        (["executions", "list", "--by", "ada"], 2),
        (["run", "FLOWS", "--detach"], 5),
        (["run", "FLOW", "--detach"], 2),
        (["run", "FLOW", "--detach", "-i", "topics=x"], 2),
        (["run", "FLOW", "--detach", "-i", "topic=x", "--timeout", "0"], 2),
        (["run", "FLOW", "--detach", "-i", "topic=x", "--budget-usd", "much"], 2),
    ],
)
def test_refusals_are_the_same(stage, arguments, code):
    assert same(stage, *arguments, "--json", code=code) == ""


@pytest.mark.parametrize("by", [*Dimension])
def test_costs_are_the_same(stage, by):
    told = json.loads(same(stage, "costs", "--by", by, "--json"))
    assert (told["total"]["calls"], told["total"]["cost_usd"]) == (8, "0.04")
    assert same(stage, "costs", "--by", by, "--flow", "FLOW")


def test_costs_of_a_flow_that_is_not_there_are_refused_the_same(stage):
    assert same(stage, "costs", "--flow", "FLOWS", "--json", code=5) == ""


def test_errors_are_the_same(stage):
    (group,) = json.loads(same(stage, "errors", "--json"))
    assert (group["count"], group["flows"]) == (2, {"FLOW": []})
    assert same(stage, "errors", "--since", "1h", "--flow", "FLOW")


def test_flows_are_paused_and_resumed_the_same(stage):
    for ask in (stage.here, stage.there):
        assert ask("flows", "pause", "FLOW", "--reason", "inventory").stdout == "FLOW  paused\n"
        assert json.loads(ask("flows", "pause", "FLOW", "--json").stdout) == {"flow_key": "FLOW", "changed": False}
        (status,) = json.loads(same(stage, "flows", "status", "--json"))
        assert status["paused_reason"] == "inventory"
        assert "is paused by" in ask("run", "FLOW", "-i", "topic=x", "--detach").stderr
        assert ask("flows", "resume", "FLOW").stdout == "FLOW  resumed\n"
    assert same(stage, "flows", "status")
    same(stage, "flows", "pause", "FLOWS", "--json", code=5)


def test_a_server_tells_of_its_flows_as_a_project_does_of_its_own(stage):
    assert stage.there("flows", "list").stdout == "FLOW\tshop.main:Shop\ttopic*\t\n"
    (flow,) = json.loads(stage.there("flows", "list", "--json").stdout)["flows"]
    assert (flow["key"], flow["graph"]) == ("FLOW", GRAPH)
    assert json.loads(stage.there("flows", "schema", "FLOW").stdout) == SCHEMA
    assert json.loads(stage.there("flows", "graph", "Shop", "--json").stdout) == GRAPH
    assert "begin[begin]" in stage.there("flows", "graph", "FLOW", "--format", "mermaid").stdout
    shown = stage.there("flows", "show", "FLOW")
    assert "topic" in shown.stdout
    assert stage.there("flows", "show", "FLOWS").returncode == 5


def test_a_flow_is_run_by_any_of_its_names(stage):
    for name in ("FLOW", "Flow", "Shop", "shop.main:Shop"):
        assert stage.there("run", name, "-i", "topic=x", "--detach").returncode == 0


# -- Changing ---------------------------------------------------------------------------------------------------------


def test_what_starts_repeats_and_ends_is_the_same(stage):
    outputs = [lived(ask) for ask in (stage.here, stage.there)]
    assert outputs[0] == outputs[1]


def lived(ask: Any) -> list[str]:
    """What the commands of a short life write, ids and times masked.

    Two things are known on one side only. What a run usually takes is kept with a rerun here: a server takes nothing
    but inputs for one. Who cancels is known there: here it is whoever reached the database.
    """
    arguments = ("-i", "topic=x", "--timeout", "5m", "--budget-usd", "0.50", "--priority", 3, "--meeting", MEETING)
    outputs = [ask("run", "FLOW", *arguments, "--detach", "--json")]
    first = json.loads(outputs[0].stdout)["id"]
    outputs.append(ask("executions", "rerun", first, "-i", "topic=y", "--detach", "--json"))
    second = json.loads(outputs[1].stdout)["id"]
    outputs.append(ask("executions", "show", second, "--json"))
    outputs.append(ask("executions", "cancel", first, second, "--reason", "not needed"))
    outputs.append(ask("executions", "cancel", first, "--json"))
    outputs.append(ask("executions", "show", first, "--transitions", "--json"))
    assert [done.returncode for done in outputs] == [0] * len(outputs), outputs
    return [masked(done.stdout) for done in outputs]


def masked(text: str) -> str:
    text = re.sub(r'("metadata": \{)"estimate": \{[^}]*\}, ("priority": 3, "rerun_of")', r"\1\2", text)
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    text = re.sub(r'"actor": "(flowledger_api|ID)"', '"actor": "CALLER"', text)
    return re.sub(r"FLOW-\d{8}T\d{9}Z-\w{16}", "KEY", text)


def test_the_mask_hides_no_more_than_it_should():
    assert masked(f"id {uuid4()} at 2026-11-27T03:00:00.5Z is 5") == "id ID at TIME is 5"


def test_whoever_stays_with_a_run_is_told_of_its_steps_and_its_result(stage):
    with stage.product.connection("flowledger_worker") as worker:
        process = subprocess.Popen(
            [sys.executable, "-m", "flowledger", "run", "FLOW", "-i", "topic=stays"],
            env=stage.product.environment(**stage.server),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        execution = wait_for(
            lambda: stage.product.sql(
                "select id from crewai_flow_executions where input_state ->> 'topic' = 'stays' and status = 'pending'"
            )
        )[0]["id"]
        (held,) = worker.execute(
            "select * from flowledger.claim(%s, %s, '{60}', 1, '30 s', %s)", [uuid4(), [stage.flow], [execution]]
        ).fetchall()
        told(worker, held, 1)
        finish(worker, held["execution_id"], held["fence"], output={"result": "here you are"})
        out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == ("here you are\n", 0)
    assert "✓ completed" in err


# -- Which of the two -------------------------------------------------------------------------------------------------


def test_a_database_that_is_named_comes_before_a_server_of_the_environment(stage):
    where = ("--database-url", stage.product.postgres.url("flowledger"))
    nobody = {"url": "http://127.0.0.1:1"}
    assert stage.product.call("executions", "list", *where, **nobody).returncode == 0
    assert stage.product.call("executions", "list", **nobody).returncode == 1
    refused = stage.product.call("executions", "list", *where, "--url", stage.server["url"])
    assert refused.returncode == 2
    assert "--url: cannot be given together with --database-url" in refused.stderr


def test_who_asks_is_who_the_token_says(stage):
    stranger = signed(uuid4())
    listed = stage.there("executions", "list", "--token", stranger, "--json")
    assert json.loads(listed.stdout)["executions"] == []
    assert stage.there("executions", "cancel", stage.pending, "--token", stranger).returncode == 5
    refused = stage.there("executions", "list", "--token", "fl_unknown")
    assert refused.returncode == 4
    assert "fl_unknown" not in refused.stderr


@pytest.mark.parametrize("given", ["flag", "environment"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["db", "migrate"],
        ["db", "check"],
        ["worker"],
        ["server"],
        ["up"],
        ["prices", "list"],
        ["budgets", "list"],
        ["tokens", "list"],
        ["executions", "prune", "--older-than", "1d"],
    ],
)
def test_a_command_that_cannot_go_through_a_server_says_so(stage, arguments, given):
    url = stage.server["url"]
    done = stage.here(*arguments, "--url", url) if given == "flag" else stage.there(*arguments)
    assert done.returncode == 2, done.stderr
    assert "cannot go through a server" in done.stderr
    assert "FLOWLEDGER_URL" in done.stderr
