"""`make demo`: the example flows on an embedded Postgres, through a real worker, and the rows that they leave.

Without OPENAI_API_KEY in the environment the flows talk to the stub model beside this file, over real HTTP.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from stub_llm import StubServer, environment

EXAMPLES = Path(__file__).parent
DATA = Path(".flowledger") / "demo"
RUNS = (
    ("order_triage", "item=desk", "quantity=2"),
    ("lead_score", "lead.email=ada@example.org", "lead.employees=120"),
    ("board_brief", "topic=pricing of the team plan"),
    ("book_writer", "title=The Patient River"),
    ("what_to_wear", "city=Malmö", "celsius=4"),
)

console = Console(highlight=False)


def main() -> None:
    with ExitStack() as stack:
        if "OPENAI_API_KEY" not in os.environ:
            os.environ.update(environment(stack.enter_context(StubServer())))
        console.print("Starting the embedded Postgres and a worker for the examples …", style="dim")
        stack.enter_context(worker())
        for flow, *inputs in RUNS:
            run(flow, inputs)
        say("What the ledger holds", "executions", "list")
        say("The one that failed at its last step", "executions", "show", "@failed", "--timeline", "--usage")
        say("What all that cost", "costs")
        say("Is the table what its document says?", "db", "check")


@contextmanager
def worker() -> Iterator[None]:
    """A worker process that is ready when the block begins, and drained when it ends. Its log lies beside its data."""
    DATA.mkdir(parents=True, exist_ok=True)
    log = DATA / "worker.log"
    command = [*flowledger("worker"), "--project", str(EXAMPLES)]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        while "worker_ready" not in log.read_text():
            if process.poll() is not None:
                sys.exit(f"The worker did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def run(flow: str, inputs: list[str]) -> None:
    pairs = [part for pair in inputs for part in ("-i", pair)]
    console.print(f"\n$ flowledger run {flow} " + " ".join(f"-i {pair!r}" for pair in inputs), style="bold")
    subprocess.run([*flowledger("run", flow), *pairs], check=False)


def say(title: str, *command: str) -> None:
    console.print(f"\n{title}\n$ flowledger {' '.join(command)}", style="bold")
    subprocess.run(flowledger(*command), check=True)


def flowledger(group: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "flowledger", group, *arguments]


if __name__ == "__main__":
    os.environ["FLOWLEDGER_DATA_DIR"] = str(DATA)
    main()
