"""The figures that the board asks about. A real project would read them from its warehouse."""

from crewai.tools import BaseTool
from pydantic import BaseModel, Field

FIGURES = {
    "2025-Q3": {"revenue": 4.1, "costs": 3.6, "customers": 212},
    "2025-Q4": {"revenue": 4.6, "costs": 3.7, "customers": 231},
    "2026-Q1": {"revenue": 4.4, "costs": 3.9, "customers": 240},
}
LATEST = "2026-Q1"


class FiguresRequest(BaseModel):
    quarter: str = Field(default=LATEST, description="The quarter, as 2026-Q1.")


class QuarterlyFigures(BaseTool):
    name: str = "quarterly_figures"
    description: str = "Revenue and costs in million USD, and customers, of one quarter."
    args_schema: type[BaseModel] = FiguresRequest

    def _run(self, quarter: str = LATEST) -> str:
        known = quarter if quarter in FIGURES else LATEST
        figures = FIGURES[known]
        return (
            f"{known}: revenue {figures['revenue']} million, costs {figures['costs']} million, "
            f"{figures['customers']} customers"
        )
