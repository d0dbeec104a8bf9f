"""Scores a sales lead by plain rules. The lead itself is required: without one there is nothing to score."""

from typing import Literal

from crewai.flow import Flow, listen, router, start
from pydantic import BaseModel, Field

FREE_MAIL = ("gmail.com", "outlook.com", "yahoo.com")
HOT_SCORE = 60


class Lead(BaseModel):
    email: str = Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$", description="Where we can write to.")
    employees: int = Field(default=1, ge=1, description="How many people work there.")
    budget_usd: float | None = Field(default=None, ge=0, description="None: not known yet.")


class LeadState(BaseModel):
    lead: Lead = Field(description="Who asked for an offer.")
    source: Literal["website", "fair", "referral"] = "website"
    score: int = 0
    answer: str = ""


class LeadScoreFlow(Flow[LeadState]):
    """Scores a lead from 0 to 100 and says what to do next."""

    @start()
    def add_up(self) -> int:
        lead = self.state.lead
        points = {
            "a company's address": 20 if lead.email.rpartition("@")[2] not in FREE_MAIL else 0,
            "size": min(40, lead.employees // 5),
            "budget": min(30, int((lead.budget_usd or 0) // 1_000)),
            "recommended": 10 if self.state.source == "referral" else 0,
        }
        self.state.score = sum(points.values())
        print(f"{lead.email}: {self.state.score} of 100 ({points})")
        return self.state.score

    @router(add_up)
    def sort_out(self) -> Literal["hot", "cold"]:
        return "hot" if self.state.score >= HOT_SCORE else "cold"

    @listen("hot")
    def call_today(self) -> str:
        self.state.answer = f"call {self.state.lead.email} today"
        return self.state.answer

    @listen("cold")
    def send_newsletter(self) -> str:
        self.state.answer = f"send {self.state.lead.email} the newsletter"
        return self.state.answer


def sample() -> LeadScoreFlow:
    """CrewAI builds the state before it sees inputs, so a required field must be there from the start."""
    lead = Lead(email="ada@example.org", employees=120, budget_usd=25_000)
    return LeadScoreFlow(initial_state=LeadState(lead=lead))


def kickoff() -> None:
    sample().kickoff()


def plot() -> None:
    sample().plot("lead_score")


if __name__ == "__main__":
    kickoff()
