"""No call is made that could pass a budget, calls that only have to wait do wait, who ignores a refusal is ended."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from flowledger.domain.budget import Budget, OnReach, Refusal, WorstCase
from flowledger.domain.execution import Outcome
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, EventKind
from flowledger.domain.usage import CallStatus, LlmCall, PricedCall, Usage
from flowledger.runner.limits import ErrorType, Limits
from tests.accounting.spender import UNPRICED, Recording, Spender, Spent, disagreements

pytestmark = pytest.mark.timeout(180)

EIGHT = (
    *((flow, "tokens") for flow in ("EightStreamed", "EightCrews", "EightNativeCrews", "Nested")),
    *((flow, unit) for flow in ("EightThreads", "EightAwaited") for unit in ("tokens", "usd")),
)
"""Flows that make eight calls at the same time, and what their budget is in."""

NOW = datetime(2026, 11, 27, tzinfo=UTC)

Amount = int | Decimal


def amount(priced: PricedCall, unit: str) -> Amount:
    """What a call took."""
    if unit == "usd":
        assert priced.cost_usd is not None
        return priced.cost_usd
    assert priced.call.usage is not None
    return priced.call.usage.total


def most(worst: WorstCase, unit: str) -> Amount:
    """What a call can take at most."""
    if unit == "tokens":
        return worst.tokens
    assert worst.usd is not None
    return worst.usd


def breaches(spent: Spent, budget: Budget) -> list[str]:
    """Calls that began when the limit was reached, or took the run beyond it. Empty: the budget was kept."""
    unit, limit = ("usd", budget.usd) if budget.usd is not None else ("tokens", budget.tokens)
    assert limit is not None
    costs = {priced.call.number: amount(priced, unit) for priced in spent.calls if priced.call.usage}
    before: Amount = 0
    found = []
    for event in spent.events:
        if event.kind is EventKind.LLM_STARTED and before >= limit:
            found.append(f"call {event.fields['call']} began with {before} of {limit} {unit}")
        if event.kind is EventKind.LLM_COMPLETED:
            before += costs[event.fields["call"]]
    if before > limit:
        found.append(f"{before} spent of {limit} {unit}")
    return found


def most_at_once(events: list[Event]) -> int:
    """The most calls that were being made at one time."""
    running = most = 0
    for event in events:
        running += event.kind is EventKind.LLM_STARTED
        running -= event.kind in (EventKind.LLM_COMPLETED, EventKind.LLM_FAILED)
        most = max(most, running)
    return most


def assert_ended_by_its_budget(spent: Spent) -> None:
    outcome = spent.outcome
    assert (outcome.status, outcome.error_type) == (Status.FAILED, ErrorType.BUDGET_EXCEEDED), outcome.error_message
    assert spent.metadata["budget_refused"] == outcome.error_message
    # What was served and what was recorded are the same calls: none was made after the refusal.
    assert disagreements(spent) == []


# -- Calls side by side -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flow", "unit"), EIGHT)
async def test_calls_that_only_have_to_wait_do_wait_and_all_are_made(spend: Spender, flow: str, unit: str) -> None:
    worst, total = await _measured(spend, flow, unit)
    budget = _budget(unit, total + worst)
    spent = await spend(f"stubborn:{flow}", budgets=(budget,))
    assert spent.outcome.status is Status.COMPLETED, spent.outcome.error_message
    assert (len(spent.calls), spent.outcome.output_state["result"]) == (8, 8)
    assert (disagreements(spent), breaches(spent, budget)) == ([], [])
    assert 1 <= most_at_once(spent.events) <= (total + worst) / worst < 8


@pytest.mark.parametrize(("flow", "unit"), EIGHT)
async def test_no_call_is_made_after_the_limit_was_reached(spend: Spender, flow: str, unit: str) -> None:
    worst, total = await _measured(spend, flow, unit)
    budget = _budget(unit, total / 2 + worst)
    spent = await spend(f"stubborn:{flow}", budgets=(budget,))
    assert_ended_by_its_budget(spent)
    assert breaches(spent, budget) == []
    assert 0 < len(spent.calls) < 8


def test_a_call_beyond_the_limit_is_noticed() -> None:
    """The checker's own."""
    calls = [_call(number, tokens=60) for number in (1, 2, 3)]
    events = [event for number in (1, 2, 3) for event in _events(number)]
    spent = Spent(Outcome(Status.COMPLETED), Recording(events, [], calls), {})
    assert breaches(spent, Budget(tokens=180)) == []
    assert breaches(spent, Budget(tokens=179)) == ["180 spent of 179 tokens"]
    assert breaches(spent, Budget(tokens=120)) == ["call 3 began with 120 of 120 tokens", "180 spent of 120 tokens"]
    assert most_at_once([events[0], events[2], events[1], events[3]]) == 2


async def _measured(spend: Spender, flow: str, unit: str) -> tuple[Amount, Amount]:
    """The most that one of its calls can take, and what all of them take."""
    known = _MEASURED.get(flow)
    if known is None:
        purse = Watching()
        free = await spend(f"stubborn:{flow}", purse=purse)
        assert most_at_once(free.events) > 2
        known = _MEASURED[flow] = (purse.asked, free.calls)
    asked, calls = known
    return max(most(worst, unit) for worst in asked), sum(amount(priced, unit) for priced in calls)


_MEASURED: dict[str, tuple[list[WorstCase], list[PricedCall]]] = {}


class Watching:
    """A purse that never runs empty, and sees what is reserved."""

    def __init__(self) -> None:
        self.asked: list[WorstCase] = []

    async def reserve(self, number: int, worst: WorstCase) -> list[Refusal]:
        self.asked.append(worst)
        return []


def _budget(unit: str, amount: Amount, **changes: Any) -> Budget:
    usd = Decimal(amount) if unit == "usd" else None
    return Budget(usd, None if unit == "usd" else int(amount), **changes)


def _call(number: int, tokens: int) -> PricedCall:
    usage = Usage(input_tokens=tokens)
    return PricedCall(LlmCall(number, f"c{number}", "m", "openai", NOW, CallStatus.COMPLETED, usage))


def _events(number: int) -> tuple[Event, Event]:
    fields = {"call": number}
    return (
        Event(2 * number - 1, NOW, EventKind.LLM_STARTED, "m", fields),
        Event(2 * number, NOW, EventKind.LLM_COMPLETED, "m", fields),
    )


# -- What a refusal does ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", ["Swallows", "Insists", "InsistsAwaited"])
async def test_a_flow_that_ignores_the_refusal_is_ended(spend: Spender, flow: str) -> None:
    budget = Budget(tokens=150)
    began = time.monotonic()
    spent = await spend(f"stubborn:{flow}", budgets=(budget,))
    assert_ended_by_its_budget(spent)
    assert breaches(spent, budget) == []
    assert time.monotonic() - began < 10


async def test_a_flow_that_swallows_the_refusal_and_returns_before_anybody_looks_has_failed(spend: Spender) -> None:
    """Its result is there before the worker has acted on its own decision."""

    class Late(Limits):
        def exceed(self, reason: str) -> None:
            super().exceed(reason)
            asyncio.get_running_loop().call_soon(time.sleep, 0.7)

    spent = await spend("stubborn:Swallows", budgets=(Budget(tokens=150),), limits=Late())
    assert spent.outcome.output_state["result"] == "swallowed HookAborted"
    assert_ended_by_its_budget(spent)


@pytest.mark.parametrize("flow", ["AgentOver", "CrewOver"])
async def test_a_refusal_inside_an_agent_or_a_crew_ends_the_run(spend: Spender, flow: str) -> None:
    spent = await spend(f"stubborn:{flow}", budgets=(Budget(tokens=150),))
    outcome = spent.outcome
    assert (outcome.status, outcome.error_type) == (Status.FAILED, ErrorType.BUDGET_EXCEEDED)
    assert (spent.calls, spent.served) == ([], {})
    (refused,) = [event for event in spent.events if event.kind is EventKind.LLM_REFUSED]
    assert refused.fields["agent_role"] == "Writer"
    assert refused.fields["reason"] == outcome.error_message
    assert "of the execution's budget of 150 tokens" in str(outcome.error_message)
    assert "max_tokens" in str(outcome.error_message)


async def test_a_budget_of_nothing_lets_no_call_through(spend: Spender) -> None:
    for budget in (Budget(usd=Decimal(0)), Budget(tokens=0)):
        spent = await spend("direct:Call", budgets=(budget,))
        assert (spent.outcome.error_type, spent.calls, spent.served) == (ErrorType.BUDGET_EXCEEDED, [], {})


async def test_the_narrowest_of_several_budgets_decides(spend: Spender) -> None:
    wide, narrow = Budget(usd=Decimal(5)), Budget(tokens=150, name="the flow's budget for a run")
    spent = await spend("stubborn:Swallows", budgets=(wide, narrow))
    assert_ended_by_its_budget(spent)
    assert "the flow's budget for a run of 150 tokens" in str(spent.outcome.error_message)
    told = spent.metadata["budgets"]
    assert [told[0]["limit_usd"], told[1]["limit_tokens"]] == ["5", 150]
    # Nothing is left set aside in the wide one by calls that the narrow one refused.
    assert Decimal(told[0]["spent_usd"]) == spent.outcome.cost_usd


async def test_a_budget_that_warns_says_so_once_and_stops_nothing(spend: Spender) -> None:
    spent = await spend("stubborn:Swallows", budgets=(Budget(tokens=150, on_reach=OnReach.WARN),))
    assert (spent.outcome.status, len(spent.calls)) == (Status.COMPLETED, 8)
    assert disagreements(spent) == []
    (warned,) = [event for event in spent.events if event.kind is EventKind.BUDGET_WARNED]
    assert warned.fields["reason"] == spent.metadata["budget_warnings"][0]
    assert spent.metadata["budgets"][0]["spent_tokens"] == spent.outcome.token_count


async def test_a_model_without_a_price_cannot_be_kept_to_dollars(spend: Spender) -> None:
    inputs = {"model": UNPRICED, "calls": 2, "options": {"max_tokens": 20}}
    spent = await spend("direct:Inputs", inputs, budgets=(Budget(usd=Decimal(100)),))
    assert (spent.outcome.error_type, spent.calls) == (ErrorType.BUDGET_EXCEEDED, [])
    assert f"{UNPRICED} has no price" in str(spent.outcome.error_message)
    assert "set its price, or give the budget in tokens" in str(spent.outcome.error_message)
    in_tokens = await spend("direct:Inputs", inputs, budgets=(Budget(tokens=1000),))
    assert (in_tokens.outcome.status, in_tokens.outcome.cost_usd) == (Status.COMPLETED, None)
    assert in_tokens.metadata["unpriced_models"] == [UNPRICED]


# -- Calls that nobody knows the cost of ------------------------------------------------------------------------------


async def test_what_a_call_without_a_report_had_set_aside_counts_as_spent(spend: Spender) -> None:
    inputs = {"model": "gpt-4o-mini-stub-no-usage", "calls": 5, "options": {"max_tokens": 20}}
    spent = await spend("direct:Inputs", inputs, budgets=(Budget(tokens=300),))
    assert spent.outcome.error_type is ErrorType.BUDGET_EXCEEDED
    assert (len(spent.calls), spent.outcome.token_count, spent.outcome.cost_usd) == (3, None, None)
    assert 200 < spent.metadata["budgets"][0]["spent_tokens"] <= 300
    assert all(priced.estimated_usd for priced in spent.calls)


async def test_a_call_that_its_provider_refused_takes_nothing(spend: Spender) -> None:
    inputs = {"model": "gpt-4o-mini-stub-400", "options": {"max_tokens": 20}}
    spent = await spend("failing:Tries", inputs, budgets=(Budget(usd=Decimal(20)),))
    assert spent.outcome.status is Status.COMPLETED
    assert Decimal(spent.metadata["budgets"][0]["spent_usd"]) == spent.outcome.cost_usd
    assert disagreements(spent) == []


async def test_a_call_that_the_flow_gives_up_holds_nobody_up(spend: Spender) -> None:
    """CrewAI does not tell of it. What it had set aside counts as spent: it may have been billed."""
    spent = await spend("stubborn:GivesUp", budgets=(Budget(tokens=180),), timeout_seconds=15)
    assert spent.outcome.error_type is ErrorType.BUDGET_EXCEEDED
    spent = await spend("stubborn:GivesUp", budgets=(Budget(tokens=220),), timeout_seconds=15)
    assert spent.outcome.status is Status.COMPLETED
    given_up, answered = (priced.call for priced in spent.calls)
    assert (given_up.status, given_up.usage, answered.status) == (CallStatus.UNKNOWN, None, CallStatus.COMPLETED)
    assert spent.outcome.token_count == answered.usage.total if answered.usage else None
    (end,) = [event for event in spent.events if event.kind is EventKind.LLM_FAILED]
    assert end.fields["abandoned"] is True
    # The next call is not inside the one that was given up.
    parents = {event.fields["call"]: event.parent for event in spent.events if event.kind is EventKind.LLM_STARTED}
    assert parents[1] == parents[2]


# -- Calls that cannot wait -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flow", "why"),
    [("BlocksTheLoop", "a call that holds up its event loop"), ("CallsFromATool", "a call inside another one")],
)
async def test_a_call_that_would_wait_for_itself_is_refused(spend: Spender, flow: str, why: str) -> None:
    free = await spend(f"stubborn:{flow}", budgets=(Budget(tokens=1000),))
    assert (free.outcome.status, len(free.calls)) == (Status.COMPLETED, 2)
    began = time.monotonic()
    spent = await spend(f"stubborn:{flow}", budgets=(Budget(tokens=800 if flow == "CallsFromATool" else 150),))
    assert time.monotonic() - began < 10
    (refused,) = [event for event in spent.events if event.kind is EventKind.LLM_REFUSED]
    assert f"{why} cannot" in refused.fields["reason"]
    assert len(spent.calls) == 1


async def test_a_flow_that_ends_with_a_call_that_cannot_wait_ended_by_its_budget(spend: Spender) -> None:
    outcome = (await spend("stubborn:BlocksTheLoop", budgets=(Budget(tokens=150),))).outcome
    assert (outcome.status, outcome.error_type) == (Status.FAILED, ErrorType.BUDGET_EXCEEDED)
    assert "await llm.acall(...)" in str(outcome.error_message)
    assert outcome.error_stack is None
