"""How spans are named and described: by OpenTelemetry's GenAI semantic conventions (`gen_ai.*`) where they have a word,
else by words of our own (`flowledger.*`). A value of None is no attribute: `known` leaves it out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flowledger.domain.execution import Execution
from flowledger.domain.timeline import Span
from flowledger.domain.usage import PricedCall, Usage

Attribute = str | bool | int | float | tuple[str, ...]
Attributes = dict[str, Attribute | None]

UNKNOWN_ERROR = "_OTHER"
"""The conventions' word for an error whose class nobody has told."""
BUDGET_ERROR = "BudgetExceeded"

_OPERATIONS = {
    "flow": "invoke_workflow",
    "crew": "invoke_workflow",
    "agent": "invoke_agent",
    "llm": "chat",
    "tool": "execute_tool",
}

_NAMED_BY = {
    "flow": "gen_ai.workflow.name",
    "crew": "gen_ai.workflow.name",
    "agent": "gen_ai.agent.name",
    "llm": "gen_ai.request.model",
    "tool": "gen_ai.tool.name",
}

_FIELDS = {
    "method": "flowledger.method.name",
    "from_cache": "flowledger.tool.from_cache",
    "run_attempts": "flowledger.tool.attempt",
    "retries": "flowledger.llm.retries",
    "stream": "gen_ai.request.stream",
    "reason": "flowledger.budget.reason",
    "level": "flowledger.log.level",
}
"""Fields of events that are no content of the flow's."""

_TOLD_OTHERWISE = {
    *("agent_role", "crew_name", "task_name", "usage", "provider", "finish_reason", "call", "call_id", "duration_ms"),
    *("error", "error_type"),
    *_FIELDS,
}

_PROVIDERS = {
    "azure": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "google": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""CrewAI's words for providers -> those of the conventions, where they differ."""

_LONGEST_TEXT = 4_000
_LARGEST_INTEGER = 2**63 - 1


def known(attributes: Mapping[str, Attribute | None]) -> dict[str, Attribute]:
    return {name: value for name, value in attributes.items() if value is not None}


def span_name(span: Span, *, previews: bool) -> str:
    operation = _OPERATIONS.get(span.subject, span.subject)
    return f"{operation} {named}" if (named := _named(span.subject, span.name, previews=previews)) else operation


def about_execution(execution: Execution) -> Attributes:
    """The root's. Sums carry names of our own: a receiver that adds up `gen_ai.usage.*` would count them twice."""
    metadata = execution.metadata or {}
    return {
        "gen_ai.operation.name": _OPERATIONS["flow"],
        "gen_ai.workflow.name": execution.flow_key,
        "flowledger.execution.id": str(execution.id),
        "flowledger.execution.key": execution.execution_key,
        "flowledger.execution.status": str(execution.status),
        "flowledger.execution.mode": str(execution.execution_mode),
        "flowledger.flow.key": execution.flow_key,
        "flowledger.flow.version": _attribute(metadata.get("flow_version")),
        "flowledger.worker.id": _attribute(metadata.get("worker_id")),
        "flowledger.tokens": execution.token_count,
        "flowledger.cost_usd": _exact_cost(execution),
        "flowledger.unpriced_models": _words(metadata.get("unpriced_models")),
        "flowledger.events_dropped": _attribute(metadata.get("events_dropped")),
        "user.id": None if execution.executed_by is None else str(execution.executed_by),
        "error.type": execution.error_type,
    }


def about_span(span: Span, *, previews: bool) -> Attributes:
    """What an event says of what it is about, without tokens."""
    about = about_fields(span.fields, previews=previews)
    about["gen_ai.operation.name"] = _OPERATIONS.get(span.subject)
    about["flowledger.event.sequence"] = span.sequence
    if named := _named(span.subject, span.name, previews=previews):
        about[_NAMED_BY.get(span.subject, f"flowledger.{span.subject}.name")] = named
    return about


def about_fields(fields: Mapping[str, Any], *, previews: bool) -> Attributes:
    """What is surely no content; with previews, everything else as well."""
    about = {name: _attribute(fields.get(field)) for field, name in _FIELDS.items()}
    about["gen_ai.agent.name"] = _named("agent", fields.get("agent_role"), previews=previews)
    about["flowledger.crew.name"] = _named("crew", fields.get("crew_name"), previews=previews)
    about["flowledger.task.name"] = _named("task", fields.get("task_name"), previews=previews)
    if previews:
        rest = {name: value for name, value in fields.items() if name not in _TOLD_OTHERWISE}
        about |= {f"flowledger.{name}": _attribute(value) for name, value in rest.items()}
    return about


def about_call(priced: PricedCall) -> Attributes:
    call, cost = priced.call, priced.cost_usd
    return {
        "gen_ai.operation.name": _OPERATIONS["llm"],
        **_about_model(call.model, call.provider, call.finish_reason),
        **_about_usage(call.usage),
        "gen_ai.agent.name": _named("agent", call.agent),
        "gen_ai.response.time_to_first_chunk": None if call.first_token_ms is None else call.first_token_ms / 1000,
        "flowledger.crew.name": call.crew,
        "flowledger.method.name": call.step,
        "flowledger.llm.retries": call.retries or None,
        "flowledger.cost_usd": None if cost is None else float(cost),
    }


def about_event_of_call(span: Span) -> Attributes:
    """For want of the call's own row."""
    reported = span.fields.get("usage")
    tokens = {name: reported.get(name) for name in vars(Usage())} if isinstance(reported, dict) else {}
    counted = {name: number for name, number in tokens.items() if isinstance(number, int)}
    return {
        **_about_model(span.name, span.fields.get("provider"), span.fields.get("finish_reason")),
        **_about_usage(Usage(**counted) if counted else None),
    }


def _about_model(model: str, provider: Any, finish_reason: Any) -> Attributes:
    return {
        "gen_ai.request.model": model,
        "gen_ai.provider.name": _PROVIDERS.get(str(provider), str(provider)) if provider else None,
        "gen_ai.response.finish_reasons": (str(finish_reason),) if finish_reason else None,
    }


def _about_usage(usage: Usage | None) -> Attributes:
    if usage is None:
        return {}
    return {
        "gen_ai.usage.input_tokens": _attribute(usage.input_tokens),
        "gen_ai.usage.output_tokens": _attribute(usage.output_tokens),
        "gen_ai.usage.cache_read.input_tokens": _attribute(usage.cached_input_tokens),
        "gen_ai.usage.cache_creation.input_tokens": _attribute(usage.cache_write_tokens),
        "gen_ai.usage.reasoning.output_tokens": _attribute(usage.reasoning_tokens),
    }


def _named(subject: str, name: Any, *, previews: bool = False) -> str | None:
    """None: it has no name. CrewAI names a task without one by its description, which is part of a prompt."""
    words = str(name or "").split()
    if subject == "task" and len(words) > 1 and not previews:
        return None
    return " ".join(words) or None


def _attribute(value: Any) -> Attribute | None:
    """A value that OTLP can carry. What comes from a flow's process may be anything that JSON holds."""
    if isinstance(value, int) and not -_LARGEST_INTEGER <= value <= _LARGEST_INTEGER:
        value = str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return (value if isinstance(value, str) else json.dumps(value))[:_LONGEST_TEXT]


def _exact_cost(execution: Execution) -> float | None:
    """Beside the row's own figure, which is rounded, its metadata holds the exact one."""
    if execution.cost_usd is None:
        return None
    try:
        return float((execution.metadata or {})["exact_cost_usd"])
    except (KeyError, TypeError, ValueError):
        return float(execution.cost_usd)


def _words(value: Any) -> tuple[str, ...] | None:
    return tuple(str(word) for word in value) if isinstance(value, list) and value else None
