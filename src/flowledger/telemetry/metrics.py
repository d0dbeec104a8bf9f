"""What a worker counts, as Prometheus reads it. Values come from facts that are logged and from rows that have ended.

Labels are bounded: flows by their keys in the ledger, models by the first hundred that are met.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from flowledger.domain.usage import Usage
from flowledger.ledger.executions import Ended
from flowledger.ledger.usage import Spent

_Fact = structlog.typing.EventDict

# A second series beside each, with the time of its making, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600)
_MOST_MODELS = 100
_OTHER_MODELS = "other"
_BUDGET_STOP = "BudgetExceeded"


class Metrics:
    """The counters of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: set[str] = set()
        self._executions = self._counter("executions", "Executions that this worker has seen end.", "flow", "status")
        self._durations = Histogram(
            "flowledger_execution_duration_seconds",
            "From the flow's start to its end.",
            ("flow",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._tokens = self._counter("tokens", "Tokens by class, each counted in one.", "flow", "model", "class")
        self._cost = self._counter("cost_usd", "What calls cost, where it is known.", "flow", "model")
        self._calls = self._counter("llm_calls", "LLM calls.", "flow", "model", "status")
        self._unknown_costs = self._counter(
            "llm_calls_of_unknown_cost", "LLM calls without a price or without tokens.", "flow", "model"
        )
        self._budget_refusals = self._counter("budget_refusals", "Executions that a budget stopped.", "flow")
        self._events_dropped = self._counter("events_dropped", "Events that the timeline does not hold.", "flow")
        self._by_fact = {
            "leases_renewed": self._counter("lease_renewals", "Leases that were renewed."),
            "lease_lost": self._counter("leases_lost", "Leases that somebody else had ended."),
            "lease_unsure": self._counter("leases_given_up", "Leases that could not be renewed in time."),
            "execution_reaped": self._counter("executions_reaped", "Executions of lost workers that were ended."),
            "record_dropped": self._counter("records_refused", "Events and log lines that Postgres cannot hold."),
            "traces_dropped": self._counter("traces_dropped", "Traces that no receiver took."),
        }

    def hear(self, _: object, __: str, fact: _Fact) -> _Fact:
        """A structlog processor: counts what is worth it."""
        counter = self._by_fact.get(str(fact.get("event")))
        if counter is not None:
            counter.inc(fact.get("number", 1))
        return fact

    def count(self, ended: Iterable[Ended], spent: Iterable[Spent]) -> None:
        """Executions that have ended, and what their calls used; each is to be given once."""
        for execution in ended:
            self._count_execution(execution)
        for calls in spent:
            self._count_calls(calls)

    def _count_execution(self, execution: Ended) -> None:
        self._executions.labels(execution.flow_key, execution.status).inc()
        self._events_dropped.labels(execution.flow_key).inc(execution.events_dropped)
        if execution.duration_ms is not None:
            self._durations.labels(execution.flow_key).observe(execution.duration_ms / 1000)
        if execution.error_type == _BUDGET_STOP:
            self._budget_refusals.labels(execution.flow_key).inc()

    def _count_calls(self, spent: Spent) -> None:
        flow, model = spent.flow_key, self._bounded(spent.model)
        self._calls.labels(flow, model, spent.status).inc(spent.calls)
        self._unknown_costs.labels(flow, model).inc(spent.unknown_costs)
        self._cost.labels(flow, model).inc(float(spent.cost_usd))
        for name, number in _apart(spent.usage):
            self._tokens.labels(flow, model, name).inc(number)

    def _bounded(self, model: str) -> str:
        if len(self._models) < _MOST_MODELS:
            self._models.add(model)
        return model if model in self._models else _OTHER_MODELS

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"flowledger_{name}", told, labels, registry=self.registry)


def _apart(usage: Usage) -> Iterator[tuple[str, int]]:
    """Each token in one class, so that the classes add up to the total."""
    yield "input", max(usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens, 0)
    yield "cached_input", usage.cached_input_tokens
    yield "cache_write", usage.cache_write_tokens
    yield "output", max(usage.output_tokens - usage.reasoning_tokens, 0)
    yield "reasoning", usage.reasoning_tokens
