"""Whatever a flow leaves behind, its row ends, holds what docs/lifecycle.md says it becomes, and counts each change."""

from __future__ import annotations

import base64
import inspect
import itertools
import json
import math
import pickle
import re
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from flowledger.database.session import Database
from flowledger.domain.execution import Claim, Finish, Outcome
from flowledger.domain.flow import Flow
from flowledger.domain.status import Status
from flowledger.ledger import executions, flows
from flowledger.runner import encode
from tests.acceptance.product import Product, Row, WorkerProcess

pytestmark = pytest.mark.timeout(240)


RESULTS: dict[str, tuple[Any, dict[str, int]]] = {
    "NUL in text": ("ab", {"text": 1}),
    "NUL in a key": ({"ab": 1}, {"text": 1}),
    "lone surrogate in text": ("a\ufffdb", {"text": 1}),
    "lone surrogate in a key": ({"a\ufffdb": 1}, {"text": 1}),
    "keys that become one": ({"a": 1, "a'": 2, "7": 3, "7'": 4}, {"text": 1, "key": 1}),
    "NaN": (None, {"not a number": 1}),
    "infinities": ([None, None], {"not a number": 2}),
    "number of 140,000 digits": ({"__int__": hex(10**140_000)}, {"huge integer": 1}),
    "number of 5,000 digits": ({"__int__": hex(-(10**5000))}, {"huge integer": 1}),
    "decimal beyond all numbers": ("1E+200000", {}),
    "cycle": ({"name": "loop", "self": "<cycle>"}, {"cycle": 1}),
    "bytes": ({"__bytes__": "/wA="}, {"bytes": 1}),
    "keys of every kind": ({"None": 1, "1.5": 2, "(1, 2)": 3, "b'k'": 4}, {"key": 4}),
    "set": ([1], {}),
    "object without a repr": ("<Mute without a repr>", {"object": 1}),
    "enum, date and decimal": (["red", "2026-01-02", "1.50"], {}),
    "model that refuses": ({"amount": 3}, {}),
}
BOUNDED = {
    "generator inside": "object",
    "nested 150 deep": "too deep",
    "nested 20,000 deep": "too deep",
    "lock": "object",
    "dict that lies": "object",
}
LEFT_OUT = ("5 MB of text", "1,500,000 values")
FAILURES = {
    "error type of 300 characters": "hostile.outcomes." + "E" * 83,
    "error type with a surrogate": "hostile.outcomes.E\ufffd",
    "error of 1 MB with NUL": "ValueError",
    "error without words": "hostile.outcomes.Furious",
}
TOKENS = {
    "tokens beyond 2^31": 2**31 - 1,
    "tokens beyond all bounds": None,
    "tokens below zero": None,
    "tokens that are no number": None,
}


class Started:
    def __init__(self, product: Product) -> None:
        self._product = product
        names = (*RESULTS, *BOUNDED, *LEFT_OUT, *FAILURES, *TOKENS)
        self.ids: dict[str, UUID] = {how: product.kickoff("outcomes", how=how) for how in names}

    def row(self, how: str) -> Row:
        return self._product.ended(self.ids[how], seconds=120)

    def changes(self, how: str) -> dict[str, int]:
        return dict(self.row(how)["metadata"].get("output_changes", {}))


@pytest.fixture(scope="module")
def started(product: Product, worker: WorkerProcess) -> Started:
    return Started(product)


def test_there_are_31_hostile_outcomes_and_every_one_ends(started: Started, product: Product) -> None:
    assert len(started.ids) >= 31
    for how in started.ids:
        assert started.row(how)["status"] in ("completed", "failed"), how
    assert product.sql("select id from crewai_flow_executions where status in ('pending', 'running')") == []
    assert product.sql("select execution_id from flowledger.leases") == []


@pytest.mark.parametrize("how", RESULTS)
def test_result_becomes_what_the_docs_say_and_each_change_is_counted(started: Started, how: str) -> None:
    row = started.row(how)
    result, changes = RESULTS[how]
    assert row["status"] == "completed", row
    assert row["output_state"]["result"] == result
    assert started.changes(how) == changes


@pytest.mark.parametrize("how", BOUNDED)
def test_result_that_is_no_data_is_kept_as_far_as_it_goes(started: Started, how: str) -> None:
    row = started.row(how)
    assert row["status"] == "completed", row
    assert started.changes(how) == {BOUNDED[how]: 1}


@pytest.mark.parametrize("how", LEFT_OUT)
def test_result_beyond_the_bound_is_a_preview_with_its_true_size(started: Started, how: str) -> None:
    row = started.row(how)
    assert row["status"] == "completed", row
    assert row["output_state"]["truncated"] is True
    assert row["output_state"]["bytes"] > 1_048_576
    assert row["metadata"]["output_left_out"] == {name: row["output_state"][name] for name in ("bytes", "sha256")}


@pytest.mark.parametrize("how", FAILURES)
def test_hostile_error_fails_and_what_was_cut_is_told(started: Started, how: str) -> None:
    row = started.row(how)
    assert (row["status"], row["error_type"]) == ("failed", FAILURES[how])
    cut = len(row["error_type"]) == 100 or len(row["error_message"]) > 10_000
    assert ("clamped" in row["metadata"]) is cut


@pytest.mark.parametrize("how", TOKENS)
def test_tokens_that_cannot_be_counted_do_not_cost_the_outcome(started: Started, how: str) -> None:
    row = started.row(how)
    assert (row["status"], row["output_state"]["result"]) == ("completed", "counted")
    assert row["token_count"] == TOKENS[how]
    assert ("clamped" in row["metadata"]) is (how == "tokens beyond 2^31")


def test_docs_list_every_change_that_the_child_makes() -> None:
    page = (Path(__file__).parents[2] / "docs/lifecycle.md").read_text()
    made = set(re.findall(r'changes\["(.+?)"\]', inspect.getsource(encode)))
    assert len(made) >= 9
    assert {name for name in made if f"| `{name}` |" not in page} == set()


# -- Any JSON at all --------------------------------------------------------------------------------------------------

TEXT = st.text(st.sampled_from("a'\x00\ud83d\ude00\udfff\u00e9"), max_size=5) | st.text(
    st.characters(exclude_categories=()), max_size=8
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.just(math.nan) | TEXT
VALUES = st.recursive(
    TEXT | SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)


def becomes(value: Any) -> Any:
    """The list in docs/lifecycle.md, written a second time and without the code's help."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        whole = "".join(
            chr(0x10000 + ((ord(pair[0]) - 0xD800) << 10) + ord(pair[1]) - 0xDC00)
            if len(pair) == 2
            else ("\ufffd" if "\ud800" <= pair <= "\udfff" else pair)
            for pair in _halves_together(value)
        )
        return whole.replace("\x00", "")
    if isinstance(value, list):
        return [becomes(item) for item in value]
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, item in value.items():
            name = becomes(key)
            while name in found:
                name += "'"
            found[name] = becomes(item)
        return found
    return value


_FIRST_HALVES = {chr(half) for half in range(0xD800, 0xDC00)}


def _halves_together(text: str) -> list[str]:
    """The characters of `text`; two halves of one that stand side by side are one."""
    pairs: list[str] = []
    for character in text:
        if pairs and pairs[-1] in _FIRST_HALVES and "\udc00" <= character <= "\udfff":
            pairs[-1] += character
        else:
            pairs.append(character)
    return pairs


def same(stored: Any, value: Any) -> bool:
    """Numbers come back in decimal, as numeric keeps them: 1e22 as an integer of 23 digits, -0.0 as 0."""
    if isinstance(value, dict):
        return (
            isinstance(stored, dict)
            and stored.keys() == value.keys()
            and all(same(stored[key], value[key]) for key in value)
        )
    if isinstance(value, list):
        return isinstance(stored, list) and len(stored) == len(value) and all(map(same, stored, value))
    if isinstance(value, float):
        return not isinstance(stored, bool) and isinstance(stored, int | float) and float(stored) == value
    return type(stored) is type(value) and bool(stored == value)


def _plain(value: Any) -> bool:
    """True if `value` is stored as it is."""
    return repr(becomes(value)) == repr(value)


def test_comparison_tells_a_changed_value_from_an_equal_one() -> None:
    assert same({"a": [10**22]}, {"a": [1e22]})
    assert same(0, -0.0)
    for stored, value in (([1], [2]), ({"a": 1}, {"b": 1}), (None, 0.0), (True, 1.0), (1, True), ([], {}), ("", None)):
        assert not same(stored, value)


@pytest.fixture
async def service(product: Product) -> Any:
    async with Database(product.postgres.url("flowledger_worker"), most_connections=2) as database:
        yield database


class Claims:
    """Executions of nobody's flow, claimed by hand."""

    def __init__(self, product: Product, service: Database, flow: UUID) -> None:
        self._product = product
        self._service = service
        self._flow = flow
        self._worker = UUID(int=31)

    async def next(self) -> Claim:
        execution = self._product.kickoff("by_hand")
        async with self._service.service() as connection:
            (claim,) = await executions.claim(
                connection, self._worker, {self._flow: 60.0}, 1, timedelta(seconds=60), [execution]
            )
        return claim

    async def finish(self, claim: Claim, outcome: Outcome) -> Row:
        async with self._service.service() as connection:
            assert await executions.finish(connection, claim.execution_id, claim.fence, outcome) is Finish.OK
        return self._product.row(claim.execution_id)


@pytest.fixture
async def claims(product: Product, service: Database) -> Claims:
    async with service.service() as connection:
        by_hand = Flow("by_hand", "By hand", "", "m:ByHand", None, {}, "", "1")
        (known,) = await flows.remember(connection, [by_hand])
    return Claims(product, service, known.id)


@pytest.mark.parametrize(
    ("name", "outcome", "clamped"),
    [
        ("cost that is no number", {"cost_usd": Decimal("nan")}, "cost_usd"),
        ("cost without end", {"cost_usd": Decimal("inf")}, "cost_usd"),
        ("cost below zero", {"cost_usd": Decimal("-0.01")}, "cost_usd"),
        ("cost of a million", {"cost_usd": Decimal(1_000_000)}, "cost_usd"),
        ("tokens beyond an integer", {"token_count": 2**31}, "token_count"),
        ("tokens below zero", {"token_count": -1}, "token_count"),
        ("began after 100 years", {"began_after_ms": 100 * 365 * 86_400_000}, "began_after_ms"),
    ],
)
async def test_figure_that_the_row_cannot_hold_is_clamped_and_its_true_value_kept(
    claims: Claims, name: str, outcome: dict[str, Any], clamped: str
) -> None:
    row = await claims.finish(await claims.next(), Outcome(Status.COMPLETED, {"result": name}, **outcome))
    assert (row["status"], row["output_state"]) == ("completed", {"result": name}), row
    assert row["metadata"]["clamped"][clamped] == str(outcome[clamped])


@pytest.mark.parametrize(
    "output",
    [
        {"result": "a\x00b"},
        {"result": math.nan},
        {"result": "\ud800"},
        {"result": object()},
        {"result": 10**140_000},
    ],
    ids=["NUL", "NaN", "surrogate", "object", "140,000 digits"],
)
async def test_outcome_that_was_not_encoded_ends_the_row_as_not_storable(claims: Claims, output: Any) -> None:
    """The last net, below the child's encoding: nothing of ours sends this."""
    row = await claims.finish(await claims.next(), Outcome(Status.COMPLETED, output))
    assert (row["status"], row["error_type"]) == ("failed", "OutputNotStorable")


async def test_any_json_is_stored_as_it_is_or_its_change_is_counted(claims: Claims) -> None:
    examples: list[Any] = []

    @seed(31)
    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(VALUES)
    def gather(value: Any) -> None:
        examples.append(value)

    gather()
    for value in examples:
        encoded, changes = encode.encode({"result": value})
        body, _ = encode.dump(encoded, 1 << 20)
        row = await claims.finish(await claims.next(), Outcome(Status.COMPLETED, json.loads(body)))
        assert row["status"] == "completed", value
        assert same(row["output_state"]["result"], becomes(value)), (value, row["output_state"])
        assert bool(changes) is not _plain(value), (value, changes)
    assert sum(not _plain(value) for value in examples) > 10, "the examples are hostile enough"


def test_any_json_comes_through_a_worker(product: Product, worker: WorkerProcess) -> None:
    examples: list[Any] = []

    @seed(7)
    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(VALUES)
    def gather(value: Any) -> None:
        examples.append(value)

    gather()
    batches = [list(batch) for batch in itertools.zip_longest(*[iter(examples)] * 50)]
    ids = [
        product.kickoff("outcomes", how="pickled", pickled=base64.b64encode(pickle.dumps(batch)).decode())
        for batch in batches
    ]
    for batch, execution in zip(batches, ids, strict=True):
        row = product.ended(execution)
        assert row["status"] == "completed", row
        for stored, value in zip(row["output_state"]["result"], batch, strict=True):
            assert same(stored, becomes(value)), (value, stored)
