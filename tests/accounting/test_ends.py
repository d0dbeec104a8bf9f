"""However a run ends, its row holds what arrived before; a call whose end nobody saw is unknown, and never nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from flowledger.domain.budget import Budget
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, EventKind, SpanStatus, spans
from flowledger.domain.usage import CallStatus
from flowledger.runner.limits import Limits
from tests.accounting.shape import tree
from tests.accounting.spender import Recording, Spender, Spent, disagreements

pytestmark = pytest.mark.timeout(120)


@dataclass
class Cancelling(Recording):
    """Wishes the run to end once its second call has begun."""

    limits: Limits = field(default_factory=Limits)

    def event(self, event: Event) -> None:
        super().event(event)
        if event.kind is EventKind.LLM_STARTED and event.fields["call"] == 2:
            self.limits.cancel("no longer needed")


def assert_what_arrived_is_there(spent: Spent, status: Status, error_type: str) -> None:
    outcome = spent.outcome
    assert (outcome.status, outcome.error_type) == (status, error_type), outcome.error_message
    ended, open_ = (priced.call for priced in spent.calls)
    assert (ended.status, open_.status, open_.usage) == (CallStatus.COMPLETED, CallStatus.UNKNOWN, None)
    assert (open_.step, open_.latency_ms) == ("wait", None)
    assert ended.usage is not None
    assert outcome.token_count == ended.usage.total > 0
    # The stub saw its client hang up; the sums are those of what it had told by then.
    assert disagreements(spent) == []
    told = spent.metadata
    assert (told["usage"]["calls"], told["usage"]["calls_without_end"]) == (2, 1)
    assert told["unreported_models"] == ["gpt-4o-mini-stub-slow-20s"]
    assert [span.status for span in spans(spent.events) if span.subject == "llm"][1] is SpanStatus.RUNNING
    assert tree(spent.events).endswith("method:wait?(llm:gpt-4o-mini-stub-slow-20s?))")


async def test_cancelled(spend: Spender) -> None:
    recording = Cancelling()
    spent = await spend("told:Ends", {"how": "nothing"}, limits=recording.limits, recording=recording)
    assert_what_arrived_is_there(spent, Status.CANCELLED, "Cancelled")


async def test_timeout(spend: Spender) -> None:
    spent = await spend("told:Ends", {"how": "nothing", "stream": True}, timeout_seconds=3)
    assert_what_arrived_is_there(spent, Status.TIMEOUT, "Timeout")


@pytest.mark.parametrize(("how", "error_type"), [("killed", "ProcessKilled"), ("leaves", "ProcessExited")])
async def test_the_process_is_gone_at_once(spend: Spender, how: str, error_type: str) -> None:
    spent = await spend("told:Ends", {"how": how})
    assert_what_arrived_is_there(spent, Status.FAILED, error_type)


async def test_memory_limit(spend: Spender) -> None:
    spent = await spend("told:Ends", {"how": "eats"}, memory_bytes=300_000_000)
    assert_what_arrived_is_there(spent, Status.FAILED, "MemoryLimit")


async def test_what_was_set_aside_for_a_call_that_was_cut_off_is_kept_as_an_estimate(spend: Spender) -> None:
    spent = await spend("told:Ends", {"how": "killed"}, budgets=(Budget(tokens=10**6),))
    ended, open_ = spent.calls
    assert (ended.estimated_usd, open_.cost_usd) == (None, None)
    assert open_.estimated_usd
    assert spent.outcome.cost_usd == ended.cost_usd
    assert spent.metadata["budgets"][0]["spent_tokens"] > (spent.outcome.token_count or 0)
