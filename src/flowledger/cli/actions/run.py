"""Starts one execution from what the command line gives and exits by its outcome."""

from __future__ import annotations

import json
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from uuid import UUID

from flowledger import inputs
from flowledger.cli.actions.starting import Asked, start_and_leave
from flowledger.cli.desk import Desk
from flowledger.cli.flags import seconds, settings
from flowledger.domain.budget import Budget
from flowledger.domain.execution import NewExecution
from flowledger.domain.reach import OnReach
from flowledger.errors import InvalidInput
from flowledger.ledger.flows import KnownFlow


def run(
    *,
    flow: str,
    pairs: list[str] | None,
    input_file: str | None,
    json_input: str | None,
    timeout: str | None,
    queue_timeout: str | None,
    priority: int | None,
    budget_usd: str | None,
    budget_tokens: int | None,
    on_budget: OnReach | None,
    meeting: UUID | None,
    detach: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    chosen = settings(**flags, slots=1)
    given = _given(input_file, json_input)
    timeout_seconds, queue_seconds = seconds(timeout, "--timeout"), seconds(queue_timeout, "--queue-timeout")

    budget = _budget(budget_usd, budget_tokens, on_budget)

    def new(known: KnownFlow) -> NewExecution:
        values = {**given, **inputs.parse(pairs or [], known.input_schema)}
        inputs.check(known.input_schema, values)
        return NewExecution(
            flow_key=known.flow_key,
            inputs=values,
            board_meeting_id=meeting,
            timeout_seconds=timeout_seconds,
            queue_seconds=queue_seconds,
            priority=priority,
            budget=budget,
        )

    async def ask(_: Desk) -> Asked:
        return Asked(flow, new)

    start_and_leave(chosen, ask, detach=detach, as_json=as_json)


def _budget(usd: str | None, most_tokens: int | None, on_reach: OnReach | None) -> Budget | None:
    if usd is None and most_tokens is None:
        if on_reach is not None:
            raise InvalidInput("--on-budget", "says what happens at a budget, and there is none", "Add --budget-usd.")
        return None
    try:
        amount = None if usd is None else Decimal(usd.removeprefix("$"))
    except InvalidOperation:
        raise InvalidInput("--budget-usd", f"{usd!r} is no amount of USD", "Give one like 0.50.") from None
    return Budget(amount, most_tokens, on_reach or OnReach.STOP)


def _given(input_file: str | None, json_input: str | None) -> dict[str, Any]:
    if input_file is not None and json_input is not None:
        raise InvalidInput("--input", "cannot be given together with --json-input", "Use one of them.")
    if json_input is not None:
        return _object(json_input, "--json-input")
    if input_file is not None:
        return _object(_read(input_file), "--input")
    return {}


def _read(place: str) -> str:
    if place == "-":
        return sys.stdin.read()
    try:
        return Path(place).read_text()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise InvalidInput("--input", f"{place} cannot be read: {unreadable}") from unreadable


def _object(text: str, field: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as wrong:
        raise InvalidInput(field, f"is no JSON: {wrong}") from wrong
    if not isinstance(value, dict):
        raise InvalidInput(
            field, f"must be a JSON object, not {type(value).__name__}", 'Name each input: {"topic": "..."}.'
        )
    return value
