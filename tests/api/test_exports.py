"""Exports over HTTP: the same executions as the list, in three formats, all of them, and nobody else's."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pyarrow.parquet
import pytest

from flowledger.api import exports
from flowledger.api.exports import COLUMNS
from flowledger.domain.status import Status
from tests.api.test_executions import AT, ids, raw, refused, started
from tests.ledger.law import ALICE, BOB, born, brought_to

EXPORT = f"{AT}/export"


def lines(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def cells(answer: Any) -> list[dict[str, str]]:
    assert answer.status_code == 200, answer.text
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


def table(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return list(pyarrow.parquet.read_table(io.BytesIO(answer.content)).to_pylist())


READERS = {"csv": cells, "jsonl": lines, "parquet": table}


@pytest.mark.parametrize("form", READERS)
def test_an_export_holds_what_the_list_holds_in_its_order(as_alice, as_bob, as_operator, owner, alice, bob, flow, form):
    for status in Status:
        brought_to(status, owner, alice, flow)
    born(bob, flow)
    for client in (as_alice, as_bob, as_operator):
        for given in ({}, {"status": "failed,completed"}, {"flow": "NONE"}, {"since": "1h"}):
            read = READERS[form](client.get(EXPORT, params={"format": form, **given}))
            assert [row["id"] for row in read] == ids(client.get(AT, params=given))
            assert all(tuple(row) == COLUMNS for row in read)
    assert {row["executed_by"] for row in READERS[form](as_alice.get(EXPORT, params={"format": form}))} == {str(ALICE)}
    assert {row["executed_by"] for row in READERS[form](as_bob.get(EXPORT, params={"format": form}))} == {str(BOB)}


@pytest.mark.parametrize("form", READERS)
def test_every_page_is_in_it_once(as_alice, alice, owner, flow, form, monkeypatch):
    monkeypatch.setattr(exports, "_PAGE_ROWS", 4)
    monkeypatch.setattr(exports, "_PAGE_BYTES", 3_000)
    monkeypatch.setattr(exports, "_ROW_GROUP", 5)
    made = {str(born(alice, flow, input_state={"text": "".join(uuid4().hex for _ in range(at))})) for at in range(30)}
    owner.execute("update crewai_flow_executions set status = 'cancelled' where id::text < '8'")
    read = READERS[form](as_alice.get(EXPORT, params={"format": form}))
    assert len(read) == 30
    assert {row["id"] for row in read} == made


def test_no_page_holds_more_than_fits(as_alice, alice, flow, monkeypatch):
    monkeypatch.setattr(exports, "_PAGE_BYTES", 100_000)
    sizes: list[int] = []
    ask = exports.executions.export

    async def export(*given: Any) -> list[dict[str, Any]]:
        rows = await ask(*given)
        sizes.append(sum(len(row["input_state"]) for row in rows))
        return rows

    monkeypatch.setattr(exports.executions, "export", export)
    for _ in range(12):
        born(alice, flow, input_state={"text": "".join(uuid4().hex for _ in range(1000))})
    assert len(lines(as_alice.get(EXPORT))) == 12
    assert sum(sizes) > 12 * 32_000
    assert max(sizes) < 110_000


def test_a_row_is_whole_in_lines_of_json(as_alice, owner, flow):
    made = raw(
        owner,
        flow,
        input_state='{"n": 12345678901234567890.123456789}',
        cost_usd="0.1000",
        started_at="2026-11-27 09:00:00.5+01",
        error_message="one\ntwo",
    )
    answer = as_alice.get(EXPORT, params={"format": "jsonl"})
    assert answer.headers["content-type"].startswith("application/jsonl")
    assert answer.headers["content-disposition"] == 'attachment; filename="executions.jsonl"'
    assert '"input_state": {"n": 12345678901234567890.123456789}' in answer.text
    row = lines(answer)[0]
    assert (row["id"], row["cost_usd"], row["started_at"]) == (made, "0.1000", "2026-11-27T08:00:00.500000Z")
    assert (row["error_message"], row["completed_at"], row["output_state"]) == ("one\ntwo", None, None)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum(A1)", "\t=1", "\r=1", "＝1+1"])
def test_no_cell_is_computed_by_a_spreadsheet(as_alice, owner, flow, text):
    raw(owner, flow, error_message=text, execution_key=text, output_state=json.dumps(-1), error_type="safe")
    row = cells(as_alice.get(EXPORT, params={"format": "csv"}))[0]
    assert row["error_message"] == row["execution_key"] == f"'{text}"
    assert (row["output_state"], row["error_type"]) == ("'-1", "safe")


def test_a_cell_may_hold_commas_quotation_marks_and_lines(as_alice, owner, flow):
    raw(owner, flow, error_message='a,"b"\r\nc\nd')
    assert cells(as_alice.get(EXPORT, params={"format": "csv"}))[0]["error_message"] == 'a,"b"\r\nc\nd'


def test_parquet_is_typed(as_alice, owner, flow):
    raw(owner, flow, cost_usd="0.0071", started_at="2026-11-27Z", duration_ms=9, input_state='{"a": 1}')
    row = table(as_alice.get(EXPORT, params={"format": "parquet"}))[0]
    assert row["cost_usd"] == Decimal("0.0071")
    assert row["started_at"] == datetime(2026, 11, 27, tzinfo=UTC)
    assert (row["duration_ms"], row["input_state"]) == (9, '{"a": 1}')


def test_without_pyarrow_parquet_is_refused_and_says_what_is_missing(as_alice, monkeypatch):
    monkeypatch.setattr(exports, "find_spec", lambda _: None)
    problem = refused(as_alice.get(EXPORT, params={"format": "parquet"}), 422)
    assert problem["field"] == "format"
    assert "flowledger[archive]" in problem["remedy"]
    assert as_alice.get(EXPORT, params={"format": "csv"}).status_code == 200


@pytest.mark.parametrize("form", READERS)
def test_an_export_of_nothing_is_still_one(as_alice, form):
    assert READERS[form](as_alice.get(EXPORT, params={"format": form})) == []


@pytest.mark.parametrize("given", [{"format": "xml"}, {"limit": 5}, {"status": "done"}])
def test_a_parameter_that_does_not_fit_is_refused_by_its_name(as_alice, given):
    problem = refused(as_alice.get(EXPORT, params=given), 422)
    assert [fault["field"] for fault in problem["faults"]] == list(given)


def test_a_search_goes_on_to_the_end_of_the_history(as_alice, alice, flow, monkeypatch):
    monkeypatch.setattr("flowledger.ledger.executions._MOST_READ", 3)
    rare = str(born(alice, flow, input_state={"topic": "rare"}))
    for _ in range(8):
        born(alice, flow, input_state={"topic": "common"})
    read = lines(as_alice.get(EXPORT, params={"path": "input_state.topic", "value": "rare"}))
    assert [row["id"] for row in read] == [rare]


def test_nobody_exports_without_saying_who_asks(server, as_alice, flow):
    started(as_alice)
    with server.as_() as anybody:
        refused(anybody.get(EXPORT), 401)
