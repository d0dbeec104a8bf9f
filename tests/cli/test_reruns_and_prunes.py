"""`executions rerun` and `prune`, `flows pause`, `resume` and `status`, and the limits that `run` takes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pyarrow.parquet
import pytest
from psycopg.types.json import Jsonb

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.ledger import retention
from tests.acceptance.product import PROJECT, Product, emptied
from tests.ledger.law import used

pytestmark = pytest.mark.timeout(120)

SOMEBODY = uuid4()
SCHEMA = {"type": "object", "properties": {"topic": {"type": "string"}, "count": {"type": "integer"}}}


@pytest.fixture
def product(postgres: EmbeddedPostgres) -> Iterator[Product]:
    product = emptied(postgres, PROJECT)
    for key in ("alpha", "beta"):
        product.sql("select flowledger.remember_flow(%s, %s, '', %s, '')", key, key, Jsonb({"input_schema": SCHEMA}))
    return product


def ended(
    product: Product, flow: str = "alpha", *, days_ago: int = 0, status: str = "completed", **kickoff: object
) -> UUID:
    """An execution that ended, some days ago as far as the ledger can tell."""
    given = {"inputs": {"topic": "t"}, "metadata": None, "by": product.user} | kickoff
    with product.as_user(given["by"]) as user:
        row = user.execute(
            "select id from flowledger.kickoff(%s, %s, metadata => %s)",
            (flow, Jsonb(given["inputs"]), given["metadata"] and Jsonb(given["metadata"])),
        ).fetchone()
    assert row is not None
    id_ = row["id"]
    product.sql(
        "select flowledger.claim(%s, array[(select flow_id from crewai_flow_executions where id = %s)], "
        "array[60]::float8[], 1, '1 hour', array[%s]::uuid[])",
        uuid4(), id_, id_,
    )  # fmt: skip
    product.sql(
        "select flowledger.append_logs(array[%s]::uuid[], array[fence], array[1], array[now()], array['stdout'], "
        "array['hello']) from flowledger.leases where execution_id = %s",
        id_, id_,
    )  # fmt: skip
    calls = [Jsonb(used(1, latency_ms=1.5)), Jsonb(used(2, cost_usd="0.0000000000123"))]
    product.sql(
        "select flowledger.append_usage(array[execution_id, execution_id], array[fence, fence], %s) "
        "from flowledger.leases where execution_id = %s",
        calls, id_,
    )  # fmt: skip
    error = None if status == "completed" else "ValueError"
    product.sql(
        "select flowledger.finish(%s, fence, %s, %s, %s, 'm', null, 12, 0.25, 3, %s) from flowledger.leases "
        "where execution_id = %s",
        id_, status, Jsonb({"result": 1e30}), error, Jsonb({"host": "h"}), id_,
    )  # fmt: skip
    if days_ago:
        # Time itself cannot be moved; the guard against changes of what has ended can be stepped around by the owner.
        product.sql("alter table crewai_flow_executions disable trigger execution_duration_calculator")
        product.sql(
            "update crewai_flow_executions set started_at = started_at - make_interval(days => %s), "
            "completed_at = completed_at - make_interval(days => %s) where id = %s",
            days_ago, days_ago, id_,
        )  # fmt: skip
        product.sql("alter table crewai_flow_executions enable trigger execution_duration_calculator")
    return UUID(str(id_))


# -- Rerun ------------------------------------------------------------------------------------------------------------


def test_rerun_starts_a_new_execution_with_the_same_inputs_and_links_both(product: Product) -> None:
    earlier = ended(product, metadata={"priority": 4, "timeout_seconds": 99, "secret": "s"})
    again = product.json("executions", "rerun", earlier, "--detach")
    assert (again["status"], again["input_state"]) == ("pending", {"topic": "t"})
    assert again["metadata"].pop("estimate")["runs"] == 1
    assert again["metadata"] == {"priority": 4, "timeout_seconds": 99, "rerun_of": str(earlier)}
    shown = product.json("executions", "show", again["id"])
    assert (shown["repeats"]["of_execution"], shown["repeats"]["attempt"]) == (str(earlier), 2)
    assert [link["execution_id"] for link in product.json("executions", "show", earlier)["repeated_by"]] == [
        again["id"]
    ]
    assert re.search(rf"rerun of +{earlier} +rerun", product.call("executions", "show", again["id"]).stdout)
    assert re.search(rf"repeated by +{again['id']} +rerun", product.call("executions", "show", earlier).stdout)


def test_rerun_takes_changed_inputs_and_checks_them(product: Product) -> None:
    earlier = ended(product)
    changed = product.json("executions", "rerun", earlier, "-i", "count=2", "--detach")
    assert changed["input_state"] == {"topic": "t", "count": 2}
    refused = product.call("executions", "rerun", earlier, "-i", "colour=red", "--detach")
    assert (refused.returncode, "colour" in refused.stderr) == (2, True)


def test_rerun_with_an_editor_takes_what_the_editor_leaves(product: Product, tmp_path: Path, monkeypatch) -> None:
    earlier = ended(product)
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i \'s/"t"/"edited"/\' "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    again = product.json("executions", "rerun", earlier, "--edit", "--detach")
    assert again["input_state"] == {"topic": "edited"}


@pytest.mark.parametrize(("script", "told"), [("echo '{' > \"$1\"", "no JSON"), ("exit 3", "failed")])
def test_rerun_with_an_editor_that_spoils_it_starts_nothing(
    product: Product, tmp_path: Path, monkeypatch, script: str, told: str
) -> None:
    earlier, before = ended(product), product.rows()
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\n{script}\n")
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    done = product.call("executions", "rerun", earlier, "--edit", "--detach")
    assert (done.returncode, told in done.stderr) == (2, True)
    assert product.rows() == before


def test_rerun_of_somebody_elses_execution_is_refused(product: Product) -> None:
    theirs = ended(product, by=SOMEBODY)
    done = product.call("executions", "rerun", theirs, "--detach")
    assert (done.returncode, "may repeat" in done.stderr) == (2, True)


def test_rerun_of_nothing_exits_5(product: Product) -> None:
    assert product.call("executions", "rerun", uuid4(), "--detach").returncode == 5


# -- Run --------------------------------------------------------------------------------------------------------------


def test_run_takes_a_priority_and_a_time_to_wait(product: Product) -> None:
    row = product.json("run", "alpha", "--priority", "7", "--queue-timeout", "5m", "--timeout", "1m", "--detach")
    assert row["metadata"] == {"priority": 7, "queue_seconds": 300, "timeout_seconds": 60}
    waiting = product.sql("select priority, expires_at is not null as ends from flowledger.queue")
    assert waiting == [{"priority": 7, "ends": True}]
    assert product.call("run", "alpha", "--priority", "101", "--detach").returncode == 2


# -- Pauses -----------------------------------------------------------------------------------------------------------


def test_a_paused_flow_says_so_and_why_until_it_is_resumed(product: Product) -> None:
    assert product.json("flows", "pause", "alpha", "--reason", "prices") == {"flow_key": "alpha", "changed": True}
    assert "was paused already" in product.call("flows", "pause", "alpha").stdout
    alpha, beta = product.json("flows", "status")
    assert (alpha["paused_reason"], beta["paused_at"]) == ("prices", None)
    assert "prices" in product.call("flows", "status").stdout
    started = product.call("run", "alpha", "--detach")
    assert (started.returncode, "alpha is paused" in started.stderr) == (0, True)
    assert product.json("flows", "status")[0]["waiting"] == 1
    assert "resumed" in product.call("flows", "resume", "alpha").stdout
    assert "was not paused" in product.call("flows", "resume", "alpha").stdout
    assert product.call("flows", "pause", "nowhere").returncode == 5


# -- Prune ------------------------------------------------------------------------------------------------------------


def test_prune_only_tells_unless_told_to_delete(product: Product) -> None:
    old, _ = ended(product, days_ago=100), ended(product)
    for extra in ([], ["--dry-run"], ["--dry-run", "--yes"]):
        told = product.json("executions", "prune", "--older-than", "90d", *extra)
        assert (told["executions"], told["deleted"], told["due"][0]["flow_key"]) == (1, None, "alpha")
    assert product.rows() == 2
    assert "nothing was" in product.call("executions", "prune", "--older-than", "90d").stderr
    told = product.json("executions", "prune", "--older-than", "90d", "--yes")
    assert told["deleted"] == 1
    assert product.sql("select 1 from crewai_flow_executions where id = %s", old) == []
    assert product.sql("select pruned_by, statuses, executions from flowledger.prunes") == [
        {"pruned_by": "flowledger_api", "statuses": ["completed", "failed", "cancelled", "timeout"], "executions": 1}
    ]


def test_prune_of_some_statuses_leaves_the_others(product: Product) -> None:
    kept = ended(product, days_ago=100, status="failed")
    ended(product, days_ago=100)
    assert product.json("executions", "prune", "--older-than", "90d", "--status", "completed", "--yes")["deleted"] == 1
    assert [row["id"] for row in product.sql("select id from crewai_flow_executions")] == [kept]
    refused = product.call("executions", "prune", "--older-than", "90d", "--status", "running", "--yes")
    assert (refused.returncode, "have not ended" in refused.stderr) == (2, True)


def test_prune_archives_every_column_before_it_deletes(product: Product, tmp_path: Path) -> None:
    first = ended(product, days_ago=101)
    second = ended(
        product,
        "beta",
        days_ago=100,
        metadata={"note": "ü\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")},
    )
    rows = product.sql(
        "select id, execution_key, output_state::text as output, cost_usd, started_at from crewai_flow_executions"
    )
    done = product.json("executions", "prune", "--older-than", "90d", "--archive", tmp_path, "--yes")
    assert (done["deleted"], product.rows()) == (2, 0)
    place = Path(done["archive"])
    manifest = json.loads((place / "manifest.json").read_text())
    assert {file["name"]: file["rows"] for file in manifest["files"]} == {
        "executions.parquet": 2, "timeline.parquet": 0, "logs.parquet": 2, "transitions.parquet": 6,
        "cancel_wishes.parquet": 0, "reruns.parquet": 0, "usage.parquet": 4, "repricings.parquet": 0,
        "repriced_calls.parquet": 0,
        "failures.parquet": 0,
    }  # fmt: skip
    for file in manifest["files"]:
        assert hashlib.sha256((place / file["name"]).read_bytes()).hexdigest() == file["sha256"]
    kept = pyarrow.parquet.read_table(place / "executions.parquet").to_pylist()
    assert [row["id"] for row in kept] == [str(first), str(second)]
    for row in rows:
        (copy,) = [one for one in kept if one["id"] == str(row["id"])]
        assert (copy["execution_key"], copy["output_state"]) == (row["execution_key"], row["output"])
        assert (copy["cost_usd"], copy["started_at"]) == (row["cost_usd"], row["started_at"])
    calls = pyarrow.parquet.read_table(place / "usage.parquet").to_pylist()
    assert [call["cost_usd"] for call in calls] == ["0.01", "0.0000000000123"] * 2
    noted = product.sql("select archive from flowledger.prunes")[0]["archive"]
    assert noted == manifest


def test_an_archive_that_cannot_be_written_deletes_nothing(product: Product, tmp_path: Path) -> None:
    ended(product, days_ago=100)
    (tmp_path / "file").write_text("")
    done = product.call("executions", "prune", "--older-than", "90d", "--archive", tmp_path / "file", "--yes", "--json")
    assert (done.returncode, json.loads(done.stderr)["error"]["code"]) == (1, "archive_failed")
    assert (product.rows(), product.sql("select 1 from flowledger.prunes")) == (1, [])


def test_an_archive_that_reads_differently_than_it_was_written_deletes_nothing(
    product: Product, tmp_path: Path, monkeypatch
) -> None:
    ended(product, days_ago=100)
    monkeypatch.setattr("flowledger.archive._read", lambda path: iter([("something", "else")]))
    done = product.call("executions", "prune", "--older-than", "90d", "--archive", tmp_path, "--yes")
    assert (done.returncode, "not what was written" in done.stderr) == (1, True)
    assert product.rows() == 1
    assert list(tmp_path.rglob("manifest.json")) == []


def test_an_archive_holds_every_table_and_column_of_an_execution(product: Product) -> None:
    tables = {"executions": ("public", "crewai_flow_executions")} | {
        name: ("flowledger", name) for name in retention.TABLES[1:]
    }
    belonging = product.sql(
        "select distinct relname as name from pg_constraint join pg_class on pg_class.oid = conrelid "
        "where contype = 'f' and confrelid = 'crewai_flow_executions'::regclass"
    )
    # What is pending or runs is never pruned; the list of what has ended says again what the rows say; and a request
    # that is answered with an execution goes with it.
    left_out = {"queue", "leases", "reservations", "ended_executions", "requests"}
    assert {row["name"] for row in belonging} - left_out == set(retention.TABLES[1:])
    ended(product, days_ago=100)
    for name, (schema, table) in tables.items():
        columns = product.sql(
            "select column_name from information_schema.columns where table_schema = %s and table_name = %s",
            schema, table,
        )  # fmt: skip
        text = _query(name)
        # A transaction's number means something in its own database only.
        columns = [row["column_name"] for row in columns if row["column_name"] != "xid"]
        assert [column for column in columns if column not in text] == []


def test_many_are_pruned_in_batches(product: Product, tmp_path: Path) -> None:
    flow = product.sql("select id from crewai_flows where flow_key = 'alpha'")[0]["id"]
    product.sql("alter table crewai_flow_executions disable trigger user")
    product.sql(
        "insert into crewai_flow_executions (flow_id, execution_key, executed_by, status, started_at, completed_at) "
        "select %s, 'K' || n, %s, 'completed', now() - interval '100 d', now() - interval '100 d' "
        "from generate_series(1, 1203) as n",
        flow, product.user,
    )  # fmt: skip
    product.sql("alter table crewai_flow_executions enable trigger user")
    done = product.json("executions", "prune", "--older-than", "90d", "--archive", tmp_path, "--yes")
    assert (done["deleted"], product.rows()) == (1203, 0)
    assert pyarrow.parquet.read_metadata(Path(done["archive"]) / "executions.parquet").num_rows == 1203


def _query(name: str) -> str:
    from flowledger.sql import query

    return query("retention", name)
