"""Where a project is, what it holds and which interpreter runs it: decided from files alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flowledger import registry
from flowledger.errors import ProjectNotFound, ProjectUnusable
from tests.registry.projects import EXAMPLES

if TYPE_CHECKING:
    from tests.registry.projects import Write

FLOW = "from crewai.flow import Flow, start\n\nclass OneFlow(Flow):\n    @start()\n    def go(self): ...\n"
PROJECT = '[tool.crewai]\ntype = "flow"\n'


def test_a_project_is_found_from_a_folder_deep_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES / "board_brief" / "src" / "board_brief" / "crews")
    project = registry.locate(None, None)
    assert project.root == EXAMPLES / "board_brief"
    assert project.modules == ("board_brief.main",)
    assert project.import_paths[0] == EXAMPLES / "board_brief" / "src"


def test_a_folder_without_a_flow_project_above_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProjectNotFound, match=r"tool\.crewai"):
        registry.locate(None, None)


def test_the_kickoff_scripts_module_counts_even_if_it_only_imports_its_flow(tmp_path: Path, write: Write) -> None:
    script = PROJECT + '[project.scripts]\nkickoff = "shop.entry:kickoff"\n'
    write(tmp_path, {"pyproject.toml": script, "src/shop/entry.py": "", "src/shop/flows/one.py": FLOW})
    assert registry.locate(str(tmp_path), None).modules == ("shop.entry", "shop.flows.one")


def test_a_declared_definition_is_found(tmp_path: Path) -> None:
    project = registry.locate(str(EXAMPLES / "declared"), None)
    assert project.declarations == (EXAMPLES / "declared" / "src" / "declared" / "flow.yaml",)
    assert project.modules == ()


def test_a_definition_that_is_not_there_is_named(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"pyproject.toml": '[tool.crewai]\ntype = "flow"\ndefinition = "flow.yaml"\n'})
    with pytest.raises(ProjectUnusable, match=r"flow\.yaml, which is not there"):
        registry.locate(str(tmp_path), None)


def test_a_pyproject_that_is_not_toml_is_named(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"pyproject.toml": "[tool.crewai\n", "one.py": FLOW})
    with pytest.raises(ProjectUnusable, match=r"pyproject\.toml cannot be read"):
        registry.locate(str(tmp_path), None)


def test_a_folder_of_plain_modules_can_be_named(tmp_path: Path, write: Write) -> None:
    write(
        tmp_path,
        {
            "one.py": FLOW,
            "helpers.py": "x = 1\n",
            "test_one.py": FLOW,
            "inner/__init__.py": "",
            "inner/two.py": FLOW,
            ".venv/three.py": FLOW,
            "said.yaml": "schema: crewai.flow/v1\nname: said\nmethods: {}\n",
            "other.yaml": "name: not a flow\n",
        },
    )
    project = registry.locate(str(tmp_path), None)
    assert set(project.modules) == {"one", "inner.two"}
    assert project.declarations == (tmp_path / "said.yaml",)


def test_a_folder_of_projects_can_be_named() -> None:
    project = registry.locate(str(EXAMPLES), None)
    assert {"order_triage.main", "book_writer.main", "lead_score.main", "board_brief.main"} == set(project.modules)
    assert [path.name for path in project.declarations] == ["flow.yaml"]


def test_a_folder_without_flows_is_refused(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"a.py": "x = 1\n"})
    with pytest.raises(ProjectNotFound):
        registry.locate(str(tmp_path), None)


def test_a_file_inside_a_project_belongs_to_it() -> None:
    project = registry.locate(str(EXAMPLES / "order_triage" / "src" / "order_triage" / "main.py"), None)
    assert (project.root, project.modules) == (EXAMPLES / "order_triage", ("order_triage.main",))


def test_a_lone_file_is_its_own_project(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"one.py": FLOW, "two.py": FLOW})
    project = registry.locate(str(tmp_path / "one.py"), None)
    assert (project.root, project.modules) == (tmp_path, ("one",))


def test_a_dotted_module_of_the_working_directory_can_be_named(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(tmp_path, {"shop/__init__.py": "", "shop/one.py": FLOW}))
    project = registry.locate("shop.one", None)
    assert project.modules == ("shop.one",)
    assert tmp_path in project.import_paths


@pytest.mark.parametrize("target", ["exmples", "no/such/folder", "missing.py", "no.such.module"])
def test_what_is_not_there_is_refused(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProjectNotFound):
        registry.locate(target, None)


# -- Which interpreter -------------------------------------------------------------------------------------------------


def test_without_a_word_our_own_interpreter_runs_the_project(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"one.py": FLOW})
    assert registry.locate(str(tmp_path), None).python == Path(sys.executable)


def test_flag_before_setting_before_venv(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"pyproject.toml": PROJECT, "src/shop/main.py": FLOW})
    for name in ("flag", "setting", ".venv/bin/python"):
        _wrapper(tmp_path / name)
    assert registry.locate(str(tmp_path), None).python == tmp_path / ".venv" / "bin" / "python"
    write(tmp_path, {"pyproject.toml": PROJECT + '[tool.flowledger]\npython = "setting"\n'})
    assert registry.locate(str(tmp_path), None).python == tmp_path / "setting"
    assert registry.locate(str(tmp_path), tmp_path / "flag").python == tmp_path / "flag"


def test_a_venv_without_crewai_is_passed_over(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"pyproject.toml": PROJECT, "src/shop/main.py": FLOW})
    _script(tmp_path / ".venv/bin/python", "exit 1")
    assert registry.locate(str(tmp_path), None).python == Path(sys.executable)


def test_an_interpreter_without_crewai_is_refused_by_name(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"one.py": FLOW})
    _script(tmp_path / "bare", "exit 1")
    with pytest.raises(ProjectUnusable, match=r"bare has no CrewAI.*--python"):
        registry.locate(str(tmp_path), tmp_path / "bare")


def test_an_interpreter_that_is_not_there_is_refused_by_name(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"one.py": FLOW})
    with pytest.raises(ProjectUnusable, match="cannot be executed"):
        registry.locate(str(tmp_path), tmp_path / "nowhere")


def _wrapper(path: Path) -> None:
    _script(path, f'exec {sys.executable} "$@"')


def _script(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    assert os.access(path, os.X_OK)
