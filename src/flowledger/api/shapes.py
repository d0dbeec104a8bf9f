"""What requests and answers look like: pydantic, at the HTTP border only. Keys are those of the ledger's columns."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from flowledger.domain.execution import Execution
from flowledger.domain.mode import Mode
from flowledger.domain.status import Status
from flowledger.domain.usage import exact_text


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExecutionShape(Shape):
    """A row of `crewai_flow_executions`. Money is text, so that no digit is lost; times are UTC."""

    id: UUID
    flow_id: UUID
    flow_key: str
    execution_key: str
    status: Status
    execution_mode: Mode
    input_state: Any
    output_state: Any
    error_type: str | None
    error_message: str | None
    error_stack: str | None
    started_at: datetime | None
    completed_at: datetime | None
    duration_ms: int | None
    token_count: int | None
    cost_usd: str | None
    board_meeting_id: UUID | None
    executed_by: UUID | None
    metadata: dict[str, Any] | None

    @classmethod
    def of(cls, execution: Execution) -> Self:
        cost = execution.cost_usd
        return cls(**{**vars(execution), "cost_usd": None if cost is None else exact_text(cost)})
