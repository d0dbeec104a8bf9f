"""The timeline as it really was: what encloses what, what failed, what changed, and in which order."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, EventKind, SpanStatus, spans
from tests.accounting.shape import tree, untruths
from tests.accounting.spender import Spender, Spent, disagreements

pytestmark = pytest.mark.timeout(120)


def _of(spent: Spent, *kinds: EventKind) -> list[Event]:
    return [event for event in spent.events if event.kind in kinds]


# -- What encloses what -----------------------------------------------------------------------------------------------


async def test_failed_calls_are_told_once_and_what_comes_after_them_is_where_it_was(spend: Spender) -> None:
    spent = await spend("told:FailsInside")
    assert untruths(spent.events) == []
    failed = "llm:gpt-4o-mini-stub-400!"
    assert tree(spent.events) == (
        "flow:FailsInside("
        f"method:first({failed}, {failed}, llm:gpt-4o-mini), "
        f"method:second({failed}, flow:Inner(method:think(llm:gpt-4o-mini))), "
        f"method:third(crew:press!(task:draft!(agent:Writer!({failed}))), llm:gpt-4o-mini), "
        f"method:fourth({failed}, llm:gpt-4o-mini))"
    )


TREES = {
    "teams:AgentWithTool": "flow:AgentWithTool(method:write(agent:Writer(llm:M, tool:look_up, llm:M)))",
    "teams:CrewNative": """
        flow:CrewNative(method:publish(crew:press(task:draft(agent:Writer(llm:M)), task:review(agent:Critic(llm:M)))))
    """,
    "teams:Guarded": """
        flow:Guarded(method:publish(crew:press(task:draft(agent:Writer(llm:M),
        guardrail:It is polite.(agent:Guardrail Agent(llm:M))))))
    """,
    "direct:Deep": """
        flow:Deep(method:outermost(flow:Nested(method:outer(flow:Inner(method:think(llm:M))), method:after(llm:M))))
    """,
    "direct:ToolThatRaises": "flow:ToolThatRaises(method:ask(llm:M!(tool:look_up!)), method:afterwards(llm:M))",
    "told:Remembers": "flow:Remembers(method:learn(memory:save, memory:query))",
}


@pytest.mark.parametrize("flow", TREES)
async def test_agents_own_flows_are_not_shown_and_what_they_do_is(spend: Spender, flow: str) -> None:
    spent = await spend(flow)
    assert untruths(spent.events) == []
    assert tree(spent.events) == " ".join(TREES[flow].split()).replace("llm:M", "llm:gpt-4o-mini")


@pytest.mark.parametrize("flow", ["direct:Branches", "teams:ThreeAtOnce", "teams:CrewsInBranches", "teams:AsyncTasks"])
async def test_what_runs_side_by_side_is_told_apart(spend: Spender, flow: str) -> None:
    assert untruths((await spend(flow)).events) == []


async def test_threads_of_the_flows_own_belong_to_the_flow_and_arrive_in_order(spend: Spender) -> None:
    spent = await spend("told:TenThreads")
    assert (untruths(spent.events), disagreements(spent)) == ([], [])
    calls = _of(spent, EventKind.LLM_STARTED)
    assert len(calls) == 50
    assert {event.parent for event in calls} == {1}
    assert spent.events[0].kind is EventKind.FLOW_STARTED


async def test_a_failure_that_crewai_swallows_is_told_and_counted(spend: Spender) -> None:
    spent = await spend("told:Swallowed")
    assert untruths(spent.events) == []
    both = ("method:dies!, method:lives", "method:lives, method:dies!")
    assert tree(spent.events) in [f"flow:Swallowed(method:begin, {branches}, method:last)" for branches in both]
    assert (spent.outcome.status, spent.outcome.output_state["result"]) == (Status.COMPLETED, "done")
    assert spent.metadata["failed_steps"] == {"dies": 1}
    (failed,) = _of(spent, EventKind.METHOD_FAILED)
    assert (failed.fields["error_type"], failed.fields["error"]) == ("LookupError", "nothing there")


async def test_a_run_that_completes_without_a_failed_step_says_nothing_of_them(spend: Spender) -> None:
    assert "failed_steps" not in (await spend("direct:Call")).metadata


async def test_questions_to_a_person_and_their_answers_are_told(spend: Spender) -> None:
    spent = await spend("told:Asks")
    asked, answered = _of(spent, EventKind.FEEDBACK_REQUESTED, EventKind.FEEDBACK_RECEIVED)
    assert (asked.name, asked.fields["message"]) == ("publish", "Shall we publish?")
    assert answered.fields["response"] == "by all means"
    assert asked.parent == answered.parent == 2


async def test_memory_tells_what_was_looked_for_and_kept(spend: Spender) -> None:
    spent = await spend("told:Remembers")
    begun = {event.name: event.fields for event in _of(spent, EventKind.MEMORY_STARTED)}
    assert (begun["save"]["value"], begun["query"]["query"]) == ("Ledgers are kept.", "Which are kept?")


# -- State and logs ---------------------------------------------------------------------------------------------------


async def test_what_each_method_changed_in_the_state(spend: Spender) -> None:
    spent = await spend("told:Changes")
    changes = {event.name: event.fields.get("changes") for event in _of(spent, EventKind.METHOD_FINISHED)}
    assert changes == {
        "read": [
            {"op": "add", "path": "/notes/0", "value": "one"},
            {"op": "replace", "path": "/score", "value": 7, "was": 0},
        ],
        "leave": None,
        "write": [
            {"op": "replace", "path": "/topic", "value": "money", "was": "ledgers"},
            {"op": "add", "path": "/notes/1", "value": "two"},
        ],
    }


async def test_warnings_are_told_and_the_flows_own_logging_works_as_anywhere(spend: Spender) -> None:
    spent = await spend("told:Logs")
    told = [(event.name, event.fields["level"], event.fields["message"]) for event in _of(spent, EventKind.LOG)]
    assert told == [("team.press", "warning", "look at this"), ("team.press", "error", "could not look")]
    assert {event.parent for event in _of(spent, EventKind.LOG)} == {2}
    written = "".join(line.text for line in spent.recording.lines)
    assert "team.press said: for the log alone\n" in written
    assert "team.press said: look at this\n" in written
    assert "KeyError: 'nothing there'" in written


# -- How much is told -------------------------------------------------------------------------------------------------

PREVIEWS = ("prompt", "response", "arguments", "output", "result")


def _previews(spent: Spent) -> dict[str, list[str]]:
    return {name: [event.fields[name] for event in spent.events if name in event.fields] for name in PREVIEWS}


async def test_previews_are_the_beginning_beside_the_whole_size(spend: Spender) -> None:
    whole, cut = [await spend("teams:AgentWithTool", preview_characters=most) for most in (5_000, 10)]
    for name, texts in _previews(whole).items():
        assert texts, name
        assert _previews(cut)[name] == [text[:10] for text in texts]
        sizes = [event.fields[f"{name}_characters"] for event in cut.events if name in event.fields]
        if name != "prompt":
            # Of a prompt only the last message is shown, and all of them are measured.
            assert sizes == [len(text) for text in texts]
        assert all(size >= len(text) for size, text in zip(sizes, texts, strict=True))


async def test_without_previews_nothing_that_was_said_is_told(spend: Spender) -> None:
    spent = await spend("teams:AgentWithTool", preview_characters=0)
    assert _previews(spent) == {name: [] for name in PREVIEWS}
    assert "all about" not in repr(spent.events)
    assert disagreements(spent) == []


async def test_of_a_run_that_tells_too_much_calls_failures_and_ends_are_kept(spend: Spender) -> None:
    whole = await spend("told:FailsInside")
    spent = await spend("told:FailsInside", max_events=10)
    assert [event.sequence for event in spent.events[:10]] == list(range(1, 11))
    assert disagreements(spent) == []
    assert len(spent.calls) == 9
    failures = [event.sequence for event in whole.events if event.kind.endswith("_failed")]
    assert [event.sequence for event in spent.events if event.kind.endswith("_failed")] == failures
    assert spent.events[-1].kind is EventKind.FLOW_FINISHED
    assert spent.metadata["events_dropped"] == len(whole.events) - len(spent.events)
    kept = {event.sequence for event in spent.events}
    assert {call.call.sequence for call in spent.calls} <= {None, *kept}
    # Where a call was made is known all the same.
    assert spent.by_whom() == whole.by_whom()


# -- Spans ------------------------------------------------------------------------------------------------------------


async def test_spans_are_beginnings_with_their_ends(spend: Spender) -> None:
    spent = await spend("told:FailsInside")
    found = spans(spent.events)
    assert [span.sequence for span in found] == sorted(span.sequence for span in found)
    lasting = [span for span in found if span.status is not SpanStatus.MOMENT and span.subject != "log"]
    assert {span.status for span in lasting} == {SpanStatus.COMPLETED, SpanStatus.FAILED}
    by_sequence = {span.sequence: span for span in lasting}
    for span in lasting:
        assert span.ended_at is not None
        assert span.milliseconds is not None
        assert span.milliseconds >= 0
        if span.parent is not None:
            outer = by_sequence[span.parent]
            assert outer.ended_at is not None
            assert outer.started_at <= span.started_at <= span.ended_at <= outer.ended_at
    call = next(span for span in lasting if span.subject == "llm" and span.status is SpanStatus.COMPLETED)
    assert {"prompt", "response", "usage", "duration_ms", "provider", "call"} <= call.fields.keys()


# -- The checker itself -----------------------------------------------------------------------------------------------


@pytest.fixture
async def true(spend: Spender) -> list[Event]:
    spent = await spend("teams:AgentWithTool")
    assert untruths(spent.events) == []
    return list(spent.events)


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        (EventKind.LLM_STARTED, {"parent": 2}, "ends something else than"),
        (EventKind.LLM_STARTED, {"parent": None}, "is enclosed by nothing"),
        (EventKind.AGENT_STARTED, {"parent": 99}, "is inside what had not begun"),
        (EventKind.METHOD_STARTED, {"parent": 3}, "is inside what had not begun"),
        (EventKind.LLM_COMPLETED, {"began": 3}, "ends something else than"),
        (EventKind.LLM_COMPLETED, {"began": None}, "never ended"),
        (EventKind.TOOL_FINISHED, {"began": 99}, "ends what had not begun"),
        (EventKind.TOOL_STARTED, {"at": timedelta(seconds=-9)}, "happened before"),
        (EventKind.TOOL_STARTED, {"sequence": 50}, "comes after"),
    ],
)
async def test_what_cannot_be_true_is_noticed(
    true: list[Event], kind: EventKind, change: dict[str, Any], told: str
) -> None:
    place = next(at for at, event in enumerate(true) if event.kind is kind)
    if "at" in change:
        change = {"at": true[place].at + change["at"]}
    true[place] = replace(true[place], **change)
    assert any(told in found for found in untruths(true)), untruths(true)


async def test_an_end_that_is_told_twice_or_comes_too_early_is_noticed(true: list[Event]) -> None:
    end = next(event for event in true if event.kind is EventKind.LLM_COMPLETED)
    again = replace(end, sequence=len(true) + 1, at=true[-1].at)
    assert any("had ended" in found for found in untruths([*true, again]))
    method = next(event for event in true if event.kind is EventKind.METHOD_STARTED)
    late = replace(method, sequence=len(true) + 1, at=true[-1].at)
    assert any("which had ended" in found for found in untruths([*true, late]))
