"""A CrewAI project on disk: where it is, which interpreter runs it, and where its flows may be found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Project:
    """`import_paths` go in front of `sys.path`; `modules` are imported to find flow classes; `declarations` are
    declarative flows (YAML files). `python` is the interpreter that holds the project's CrewAI.
    """

    root: Path
    python: Path
    import_paths: tuple[Path, ...]
    modules: tuple[str, ...]
    declarations: tuple[Path, ...] = ()
