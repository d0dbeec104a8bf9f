"""Tokens, calls and cost of flows of every make, against the stub's own count: equal, in all classes.

What is compared, and with what, `spender.disagreements` says; that it notices, the last tests here show.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest

from flowledger.domain.usage import CallStatus, Usage
from tests.accounting.spender import Spender, Spent, bill, disagreements

Whom = tuple[str | None, str | None, str | None]
"""Step, crew, agent."""

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Case:
    """A flow and who makes how many calls in it. `failed` of them fail, of `untold` nobody says what they took."""

    flow: str
    calls: dict[Whom, int]
    failed: int = 0
    untold: int = 0
    ends: str = "completed"
    inputs: dict[str, Any] = field(default_factory=dict)


def _by(step: str | None, number: int = 1, crew: str | None = None, agent: str | None = None) -> dict[Whom, int]:
    return {(step, crew, agent): number}


def _crew(step: str, crew: str, number: int = 1) -> dict[Whom, int]:
    return {(step, crew, "Writer"): number, (step, crew, "Critic"): number}


def _tries(flow: str, fault: str, **expected: Any) -> Case:
    model = f"{expected.pop('model', 'gpt-4o-mini')}-stub-{fault}"
    inputs = {"model": model, **expected.pop("inputs", {})}
    return Case(
        f"failing:{flow}",
        {**_by("attempt", expected.pop("attempts", 1)), **_by("afterwards")},
        inputs=inputs,
        **expected,
    )


CASES = (
    # Direct calls, in every way there is to make one.
    Case("direct:Call", _by("ask")),
    Case("direct:CallTwice", {**_by("first"), **_by("second")}),
    Case("direct:Acall", _by("ask")),
    Case("direct:Stream", _by("ask")),
    Case("direct:StreamAsync", _by("ask")),
    Case("direct:StreamEvents", _by("ask")),
    Case("direct:TwoModels", {**_by("ask"), **_by("ask_the_dearer")}),
    Case("direct:Structured", _by("ask")),
    Case("direct:StructuredByCall", _by("ask")),
    Case("direct:StructuredAsync", _by("ask")),
    Case("direct:StructuredStream", _by("ask")),
    Case("direct:ToolInside", _by("ask")),
    Case("direct:ToolInsideStream", _by("ask")),
    Case("direct:ToolInsideAsync", _by("ask")),
    Case("direct:ToolAskedFor", _by("ask", 2)),
    Case("direct:CutShort", _by("ask")),
    # Side by side, and inside one another. Threads that a flow starts itself know of no step.
    Case("direct:Branches", {**_by("north"), **_by("east"), **_by("south"), **_by("west")}),
    Case("direct:Threads", _by(None, 5)),
    Case("direct:Pool", _by(None, 8)),
    Case("direct:Gathered", _by("ask", 6)),
    Case("direct:Nested", {**_by("think"), **_by("after")}),
    Case("direct:NestedAsync", _by("think", 3)),
    Case("direct:Deep", {**_by("think"), **_by("after")}),
    # Agents and crews.
    Case("teams:AgentAlone", _by("write", agent="Writer")),
    Case("teams:AgentAloneAsync", _by("write", agent="Writer")),
    Case("teams:AgentWithTool", _by("write", 2, agent="Writer")),
    Case("teams:AgentStructured", _by("write", agent="Writer")),
    Case("teams:OneCrew", _crew("publish", "press")),
    Case("teams:CrewAsync", _crew("publish", "press")),
    Case("teams:CrewNative", _crew("publish", "press")),
    Case("teams:CrewWithTool", _by("publish", 2, "press", "Writer")),
    Case("teams:CrewWithBrokenTool", _by("publish", 2, "press", "Writer")),
    Case("teams:CrewStructured", _by("publish", 1, "press", "Writer")),
    Case("teams:CrewStreaming", _crew("publish", "press")),
    Case("teams:ForEach", _crew("publish", "press", 3)),
    Case("teams:SharedLlm", {**_crew("publish", "morning"), **_crew("publish", "evening")}),
    Case("teams:ThreeAtOnce", {key: 1 for name in ("one", "two", "three") for key in _crew("publish", name)}),
    Case("teams:CrewsInBranches", {**_crew("left", "left"), **_crew("right", "right")}),
    Case("teams:AsyncTasks", {**_by("publish", 2, "press", "Writer"), **_by("publish", 1, "press", "Critic")}),
    Case("teams:Hierarchical", _by("publish", 2, "press", "Crew Manager")),
    Case("teams:Planned", {**_by("publish", 1, "press", "Task Execution Planner"), **_crew("publish", "press")}),
    Case("teams:Guarded", {**_by("publish", 1, "press", "Writer"), **_by("publish", 1, "press", "Guardrail Agent")}),
    Case("teams:GuardedByFunction", _by("publish", 2, "press", "Writer")),
    Case("teams:Reasons", _by("publish", 5, "press", "Writer")),
    Case(
        "teams:AllTogether",
        {**_by("ask"), **_by("write", 2, agent="Writer"), **_crew("publish", "press"), **_by("in_short")},
    ),
    # What goes wrong.
    _tries("Tries", "400", failed=1),
    _tries("Tries", "500", failed=1),
    _tries("Tries", "drop", failed=1),
    _tries("Tries", "drop", failed=1, inputs={"options": {"stream": True}}),
    _tries("TriesAsync", "400", failed=1),
    _tries("Tries", "429-once", failed=1, attempts=2),
    _tries("TriesAsync", "429-once", model="gpt-4o", failed=1, attempts=2),
    _tries("Tries", "no-usage", untold=1),
    Case("failing:Unheard", {**_by("hang_up"), **_by("afterwards")}, untold=1),
    Case("failing:Fails", {**_by("first"), **_by("second")}, failed=1, ends="failed"),
    Case("failing:Swallowed", {**_by("dies"), **_by("lives")}, failed=1),
    Case("failing:OwnClass", _by("ask")),
)


def _name(case: Case) -> str:
    return case.flow.partition(":")[2] + "".join(f"-{value}" for value in case.inputs.values())


@pytest.mark.parametrize("case", CASES, ids=_name)
async def test_everything_that_was_served_is_accounted_for(spend: Spender, case: Case) -> None:
    spent = await spend(case.flow, case.inputs)
    assert spent.outcome.status == case.ends, spent.outcome.error_message
    if spent.metadata["usage"]["calls_without_usage"]:
        # Unknown is not zero: who does not know what a call took cannot say what the run cost.
        assert spent.outcome.cost_usd is None
        spent = replace(spent, outcome=replace(spent.outcome, cost_usd=bill(spent.served)))
    assert disagreements(spent) == []
    assert spent.by_whom() == Counter(case.calls)
    told = spent.metadata["usage"]
    assert told["failed_calls"] == case.failed
    assert told["calls_without_usage"] + told["calls_without_end"] == case.untold
    assert len(spent.calls) == sum(counts["calls"] for counts in spent.served.values())


async def test_a_tool_that_raises_inside_a_call_takes_nothing_from_what_the_answer_cost(spend: Spender) -> None:
    """CrewAI tells of that call as failed, and it is listed so; its tokens were served and count."""
    spent = await spend("direct:ToolThatRaises")
    assert disagreements(spent) == []
    assert spent.by_whom() == Counter({**_by("ask"), **_by("afterwards")})
    assert spent.metadata["usage"]["failed_calls"] == 1
    assert all(priced.call.usage for priced in spent.calls)


async def test_attempts_after_a_429_are_calls_that_count_the_attempts_before(spend: Spender) -> None:
    spent = await spend("failing:Tries", {"model": "gpt-4o-mini-stub-429"})
    attempts = [priced.call for priced in spent.calls if priced.call.step == "attempt"]
    assert [(call.status, call.retries) for call in attempts] == [(CallStatus.FAILED, n) for n in range(3)]
    assert disagreements(spent) == []


async def test_attempts_that_the_providers_client_makes_inside_a_call_are_that_call(spend: Spender) -> None:
    """The client tells nobody. What was billed is what it answered in the end."""
    spent = await spend("failing:SdkRetries")
    served = spent.served["gpt-4o-mini-stub-500-once"]
    assert (served["calls"], served["failed"]) == (2, 1)
    assert [(priced.call.status, priced.call.retries) for priced in spent.calls] == [(CallStatus.COMPLETED, 0)]
    assert spent.outcome.token_count == served["prompt_tokens"] + served["completion_tokens"]


async def test_an_llm_class_that_tells_nothing_is_invisible_and_its_cost_unknown(spend: Spender) -> None:
    """Nothing passes CrewAI's event bus: not zero, but unknown."""
    spent = await spend("failing:Invisible")
    assert sum(counts["calls"] for counts in spent.served.values()) == 1
    assert (spent.calls, spent.outcome.token_count, spent.outcome.cost_usd) == ([], None, None)


async def test_a_streamed_call_knows_its_first_token(spend: Spender) -> None:
    for flow in ("direct:Stream", "direct:StreamAsync"):
        (call,) = [priced.call for priced in (await spend(flow)).calls]
        assert call.first_token_ms is not None
        assert call.latency_ms is not None
        assert 0 < call.first_token_ms <= call.latency_ms
    (call,) = [priced.call for priced in (await spend("direct:Call")).calls]
    assert call.first_token_ms is None


async def test_what_each_call_says_of_itself(spend: Spender) -> None:
    spent = await spend("teams:CrewWithTool")
    first, last = (priced.call for priced in spent.calls)
    assert (first.task, last.task, first.provider) == ("draft", "draft", "openai")
    assert (first.finish_reason, last.finish_reason) == ("tool_calls", "stop")
    assert first.started_at < last.started_at
    began = {event.sequence: event.kind for event in spent.events}
    assert [began[call.sequence or 0] for call in (first, last)] == ["llm_started"] * 2
    assert {priced.price.source for priced in spent.calls if priced.price} == {"team"}
    (cut,) = (priced.call for priced in (await spend("direct:CutShort")).calls)
    assert (cut.finish_reason, cut.usage and cut.usage.output_tokens) == ("length", 7)


# -- The comparison itself ---------------------------------------------------------------------------------------------


@pytest.fixture
async def sound(spend: Spender) -> Spent:
    spent = await spend("direct:TwoModels")
    assert disagreements(spent) == []
    return spent


async def test_a_call_that_is_missing_or_counted_twice_is_noticed(sound: Spent) -> None:
    first, _ = calls = list(sound.calls)
    for wrong in (calls[1:], [*calls, first], [replace(first, call=replace(first.call, usage=None)), calls[1]]):
        sound.recording.calls[:] = wrong
        assert any(found.startswith("calls by model") for found in disagreements(sound))


async def test_tokens_in_the_wrong_class_are_noticed(sound: Spent) -> None:
    first = sound.calls[0]
    assert first.call.usage is not None
    wrong = replace(first.call.usage, cached_input_tokens=0)
    sound.recording.calls[0] = replace(first, call=replace(first.call, usage=wrong))
    assert [found.partition(":")[0] for found in disagreements(sound)] == [
        "calls by model",
        "the sum of the calls' costs",
    ]


async def test_a_cost_that_is_a_millionth_off_is_noticed(sound: Spent) -> None:
    assert sound.outcome.cost_usd is not None
    wrong = replace(sound.outcome, cost_usd=sound.outcome.cost_usd + Decimal("0.000001"))
    assert [found.partition(":")[0] for found in disagreements(replace(sound, outcome=wrong))] == ["cost_usd"]
    assert Usage() != sound.calls[0].call.usage
