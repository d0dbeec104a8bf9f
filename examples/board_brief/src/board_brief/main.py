"""A one-page brief for the board: a crew reads the figures with a tool, an agent writes the page."""

from crewai import Agent
from crewai.flow import Flow, listen, start
from pydantic import BaseModel, Field

from board_brief.crews.figures_crew.figures_crew import FiguresCrew


class BriefState(BaseModel):
    company: str = Field(default="Northwind", description="Whose board it is.")
    topic: str = Field(default="hiring next quarter", description="What the board has to decide.")
    findings: str = ""
    brief: str = ""


class BoardBriefFlow(Flow[BriefState]):
    """Prepares a one-page brief for a board meeting from the company's own figures."""

    @start()
    def read_figures(self) -> str:
        asked = {"company": self.state.company, "topic": self.state.topic}
        self.state.findings = FiguresCrew().crew().kickoff(inputs=asked).raw
        return self.state.findings

    @listen(read_figures)
    def write_brief(self, findings: str) -> str:
        writer = Agent(
            role="Secretary of the Board",
            goal="Write briefs that are read to the end",
            backstory="You open with the decision, give the reasons, and stop.",
        )
        question = f"Write a brief on {self.state.topic} for the board of {self.state.company}. Findings: {findings}"
        self.state.brief = writer.kickoff(question).raw
        return self.state.brief

    @listen(write_brief)
    def hand_over(self, brief: str) -> str:
        page = f"# {self.state.company}: {self.state.topic}\n\n{brief}\n"
        print(page)
        return page


def kickoff() -> None:
    BoardBriefFlow().kickoff()


def plot() -> None:
    BoardBriefFlow().plot("board_brief")


if __name__ == "__main__":
    kickoff()
