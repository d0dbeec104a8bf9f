"""One analyst with one tool: looks the figures up and says what they mean."""

from crewai import Agent, Crew, Process, Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.project import CrewBase, agent, crew, task

from board_brief.tools.figures import QuarterlyFigures


@CrewBase
class FiguresCrew:
    """Reads the figures."""

    agents: list[BaseAgent]
    tasks: list[Task]

    agents_config = "config/agents.yaml"
    tasks_config = "config/tasks.yaml"

    @agent
    def analyst(self) -> Agent:
        return Agent(config=self.agents_config["analyst"], tools=[QuarterlyFigures()])  # type: ignore[index]

    @task
    def read_figures(self) -> Task:
        return Task(config=self.tasks_config["read_figures"])  # type: ignore[index]

    @crew
    def crew(self) -> Crew:
        return Crew(agents=self.agents, tasks=self.tasks, process=Process.sequential)
