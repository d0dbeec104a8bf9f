"""Writes a small book, one LLM call a chapter, and hands it to the printer, who refuses it unless it has an ISBN.

The story behind it: a run that pays for every token and fails at its last step. What was spent and why it failed must
still be known the next morning. Give `isbn` to see it succeed.
"""

import os

from crewai import LLM
from crewai.flow import Flow, listen, start
from pydantic import BaseModel, Field

from book_writer.printer import print_book


class BookState(BaseModel):
    title: str = Field(default="The Patient River", description="The book's title.")
    chapter_count: int = Field(default=3, ge=1, le=12, description="How many chapters to write.")
    isbn: str = Field(default="", description="Thirteen digits; without them the printer refuses.")
    outline: str = ""
    chapters: list[str] = []
    blurb: str = ""


class BookWriterFlow(Flow[BookState]):
    """Writes a book chapter by chapter and has it printed."""

    @start()
    def outline(self) -> str:
        wish = f"Outline a book called {self.state.title} in {self.state.chapter_count} chapters."
        self.state.outline = ask(wish)
        return self.state.outline

    @listen(outline)
    def write_chapters(self, outline: str) -> int:
        for number in range(1, self.state.chapter_count + 1):
            chapter = ask(f"Write chapter {number} of {self.state.title}. The outline: {outline}")
            self.state.chapters.append(chapter)
            print(f"chapter {number} of {self.state.chapter_count} is written, {len(chapter)} characters")
        return len(self.state.chapters)

    @listen(write_chapters)
    def write_blurb(self) -> str:
        self.state.blurb = ask(f"Praise {self.state.title} in two sentences for its back cover.")
        return self.state.blurb

    @listen(write_blurb)
    def publish(self) -> str:
        return print_book(self.state.title, self.state.chapters, self.state.isbn)


def ask(wish: str) -> str:
    model = os.environ.get("MODEL", "gpt-4o-mini")
    return str(LLM(model=model).call(wish))


def kickoff() -> None:
    BookWriterFlow().kickoff()


def plot() -> None:
    BookWriterFlow().plot("book_writer")


if __name__ == "__main__":
    kickoff()
