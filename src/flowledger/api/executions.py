"""`/executions`: start, list, show."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter

from flowledger.api.asking import Asked
from flowledger.api.shapes import ExecutionShape
from flowledger.ledger import executions

router = APIRouter(prefix="/executions", tags=["executions"])


@router.get("/{id}")
async def show(asked: Asked, id: UUID) -> ExecutionShape:  # noqa: A002 - its name in the path
    """One execution."""
    async with asked.session() as session:
        return ExecutionShape.of(await executions.find(session, asked.claims, str(id)))
