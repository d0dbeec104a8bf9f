"""Runs a flow as a worker does, and keeps what it reported beside what the stub served meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from flowledger.domain.budget import Budget
from flowledger.domain.execution import Outcome
from flowledger.domain.timeline import Event, LogLine
from flowledger.domain.usage import Price, PricedCall, Usage
from flowledger.prices import Prices, TeamPrice
from flowledger.runner.account import Account, Purse
from flowledger.runner.limits import Limits
from flowledger.runner.process import Order, Template, run

if TYPE_CHECKING:
    from stub_llm import StubServer

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = (
    "gpt-4o-mini",
    "gpt-4o",
    "gpt-4o-stub-429-once",
    *(f"gpt-4o-mini-stub-{fault}" for fault in ("400", "500", "429", "429-once", "500-once", "no-usage", "drop")),
    *(f"gpt-4o-mini-stub-{fault}" for fault in ("trickle-0.05s", "slow-0.3s", "slow-0.5s", "slow-20s")),
)
USD_PER_MILLION = {
    model: {"input": 150 + 13 * at, "cached": 37 + at, "output": 611 + 17 * at, "reasoning": 709 + 19 * at}
    for at, model in enumerate(MODELS)
}
"""Another one for each class and model, so that nothing can be taken for something else."""

TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
UNPRICED = "gpt-4o-mini-nobody-knows-its-price"


def prices() -> Prices:
    return Prices(
        TeamPrice(
            model,
            Price(
                input=Decimal(usd["input"]),
                cached_input=Decimal(usd["cached"]),
                output=Decimal(usd["output"]),
                reasoning=Decimal(usd["reasoning"]),
                source="team",
                version="test",
            ),
        )
        for model, usd in USD_PER_MILLION.items()
    )


@dataclass
class Recording:
    """Of one run: what its worker would write."""

    events: list[Event] = field(default_factory=list)
    lines: list[LogLine] = field(default_factory=list)
    calls: list[PricedCall] = field(default_factory=list)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def log(self, line: LogLine) -> None:
        self.lines.append(line)

    def call(self, call: PricedCall) -> None:
        self.calls.append(call)


@dataclass(frozen=True)
class Spent:
    """How a run ended, what it reported, and what the stub served meanwhile: calls and tokens by model."""

    outcome: Outcome
    recording: Recording
    served: dict[str, Counter[str]]

    @property
    def calls(self) -> list[PricedCall]:
        return self.recording.calls

    @property
    def events(self) -> list[Event]:
        return self.recording.events

    @property
    def metadata(self) -> dict[str, Any]:
        return self.outcome.metadata

    def by_whom(self) -> Counter[tuple[str | None, str | None, str | None]]:
        """How many calls each step, crew and agent made."""
        return Counter((priced.call.step, priced.call.crew, priced.call.agent) for priced in self.calls)

    def by_model(self) -> dict[str, Counter[str]]:
        """What was recorded, in the stub's words."""
        found: dict[str, Counter[str]] = {}
        for priced in self.calls:
            usage = priced.call.usage or Usage()
            counts = found.setdefault(priced.call.model, Counter())
            amounts = (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens, usage.reasoning_tokens)
            counts.update(dict(zip(TOKENS, amounts, strict=True)))
            counts["calls"] += 1
            # A call that ended with an answer and failed all the same was paid for: the stub did not fail.
            counts["failed"] += priced.call.status == "failed" and priced.call.usage is None
            counts["untold"] += priced.call.status != "failed" and priced.call.usage is None
        return {model: +counts for model, counts in found.items()}


def bill(served: dict[str, Counter[str]]) -> Decimal:
    """What that costs, worked out from the stub's count alone."""
    total = Decimal(0)
    for model, counts in served.items():
        usd = USD_PER_MILLION[model]
        total += usd["input"] * Decimal(counts["prompt_tokens"] - counts["cached_tokens"])
        total += usd["cached"] * Decimal(counts["cached_tokens"])
        total += usd["output"] * Decimal(counts["completion_tokens"] - counts["reasoning_tokens"])
        total += usd["reasoning"] * Decimal(counts["reasoning_tokens"])
    return total / 1_000_000


def disagreements(spent: Spent) -> list[str]:
    """Where records, sums, costs and the stub's count differ. Empty: every token and every call is accounted for."""
    recorded, served, outcome = spent.by_model(), spent.served, spent.outcome
    total = sum((counts["prompt_tokens"] + counts["completion_tokens"] for counts in served.values()), 0)
    told = spent.metadata.get("usage", {})
    calls = sum(priced.cost_usd or 0 for priced in spent.calls)
    numbers = {priced.call.number for priced in spent.calls}
    # Calls that were refused leave gaps.
    refused = "budget_refused" in spent.metadata
    sums = {
        "input_tokens": sum(counts["prompt_tokens"] for counts in served.values()),
        "cached_input_tokens": sum(counts["cached_tokens"] for counts in served.values()),
        "output_tokens": sum(counts["completion_tokens"] for counts in served.values()),
        "reasoning_tokens": sum(counts["reasoning_tokens"] for counts in served.values()),
        "calls": sum(counts["calls"] for counts in served.values()),
    }
    compared = [
        ("calls by model", recorded, served),
        ("token_count", outcome.token_count, total),
        ("cost_usd", outcome.cost_usd, bill(served)),
        ("the sum of the calls' costs", calls, bill(served)),
        *((f"metadata.usage.{name}", told.get(name), amount) for name, amount in sums.items()),
        ("distinct numbers", len(numbers), len(spent.calls)),
        ("the last number", max(numbers, default=0) if not refused else 0, len(spent.calls) if not refused else 0),
        ("call ids", len({priced.call.call_id for priced in spent.calls}), len(spent.calls)),
    ]
    return [f"{what}: {ours!r} is not {theirs!r}" for what, ours, theirs in compared if ours != theirs]


@dataclass
class Spender:
    """Runs one flow after another."""

    template: Template
    stub: StubServer

    async def __call__(
        self,
        flow: str,
        inputs: dict[str, Any] | None = None,
        *,
        budgets: tuple[Budget, ...] = (),
        purse: Purse | None = None,
        limits: Limits | None = None,
        recording: Recording | None = None,
        **changes: Any,
    ) -> Spent:
        before = self.stub.stats()["by_model"]
        limits, recording = limits or Limits(), recording or Recording()
        account = Account(prices(), recording.call, limits, budgets, purse)
        outcome = await run(self.template, order(flow, inputs or {}, **changes), limits, recording, account)
        # It may not have seen yet that a killed flow hung up.
        await asyncio.to_thread(self.stub.settle)
        return Spent(outcome, recording, _since(before, self.stub.stats()["by_model"]))


def order(flow: str, inputs: dict[str, Any], **changes: Any) -> Order:
    facts: dict[str, Any] = {
        "execution_id": uuid4(),
        "flow_key": "a-flow",
        "entry_point": f"spender.{flow}",
        "inputs": inputs,
        "timeout_seconds": 60,
        "max_output_bytes": 1_048_576,
        "max_log_bytes": 65_536,
        "max_events": 10_000,
        "grace_seconds": 1,
        "lease_seconds": 60,
    }
    return Order(**{**facts, **changes})


def _since(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Counter[str]]:
    found = {}
    for model, counts in after.items():
        more = Counter({name: count - before.get(model, {}).get(name, 0) for name, count in counts.items()})
        if +more:
            found[model] = +more
    return found
