"""A template is warm, single-threaded, free of credentials, and replaced when the project changes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from flowledger.domain.project import Project
from flowledger.domain.status import Status
from flowledger.errors import ProjectUnusable
from flowledger.runner import description, namespace
from flowledger.runner.process import Template, sweep_leftovers
from flowledger.runner.templates import NotDescribed
from tests.runner.conftest import ROOT, Runner, project
from tests.runner.test_stop import all_gone, processes_of

FAR = 60.0
REAL_PYTHON = Path(sys.executable).resolve()


async def test_modules_unfit_for_forking_start_fresh_and_say_so(namespace_template: Template) -> None:
    modules = ("house.plain", "house.threads", "house.broken", "house.crashing")
    template = _with_modules(namespace_template, *modules, import_seconds=20)
    try:
        await template.load()
        forked, fresh, broken, crashed = await asyncio.gather(
            *(
                Runner(template)(entry_point)
                for entry_point in (
                    "house.plain:Steps", "house.threads:Threaded", "house.broken:Broken", "house.crashing:Any"
                )
            )
        )  # fmt: skip
        assert (forked.status, forked.metadata["start"]) == (Status.COMPLETED, "fork")
        assert (fresh.output_state["result"], fresh.metadata["start"]) == ("ran", "fresh interpreter"), fresh
        assert (broken.error_type, broken.error_message) == ("LookupError", "this module is broken")
        assert (crashed.error_type, crashed.metadata["exit_status"]) == ("ProcessExited", "7")
        told = "\n".join(template.warnings)
        assert "house.threads starts threads when it is imported (restless)" in told
        assert "house.broken cannot be imported: LookupError" in told
        assert "house.crashing ends the interpreter" in told
        assert "house.plain" not in told
    finally:
        await template.close()


async def test_endless_import_is_given_up_and_the_others_still_run(namespace_template: Template) -> None:
    """On top of a CrewAI that is loaded already, so that the time limit is the module's alone."""
    template = _with_modules(namespace_template, "house.hanging", "house.plain", import_seconds=1)
    await template.load()
    try:
        assert "house.hanging takes longer than 1 s" in template.warnings[0]
        assert (await Runner(template)("house.plain:Steps")).status is Status.COMPLETED
    finally:
        await template.close()


async def test_template_has_one_thread(namespace_template: Template, subreaper_template: Template) -> None:
    for template in (namespace_template, subreaper_template):
        tasks = _template_tasks(template)
        assert len(tasks) >= 1
        assert all(count == 1 for count in tasks.values())


def _template_tasks(template: Template) -> dict[int, int]:
    """Threads of the launcher and of everything below it, by pid."""
    from flowledger.runner.namespace import descendants

    launcher = template._base._process.pid
    return {pid: len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in (launcher, *descendants(launcher))}


async def test_changed_source_makes_the_template_stale_and_the_next_one_runs_it(
    namespace_template: Template, tmp_path: Path
) -> None:
    shutil.copytree(ROOT, tmp_path / "project")
    moved = dataclasses.replace(
        project("house.plain"), root=tmp_path / "project", import_paths=(tmp_path / "project/src",)
    )
    old = _with_project(namespace_template, moved)
    try:
        await old.load()
        assert not old.is_stale()
        source = tmp_path / "project/src/house/plain.py"
        source.write_text(source.read_text().replace('" two"', '" zwei"'))
        assert old.is_stale()
        new = await old.renewed()
        await old.retire()
        try:
            assert not new.is_stale()
            assert (await Runner(new)("house.plain:Steps")).output_state["result"]["said"] == "one zwei"
        finally:
            await new.close()
    finally:
        await old.close()


async def test_base_describes_the_project_without_loading_it(namespace_template: Template) -> None:
    template = await namespace_template.begun_anew()
    try:
        lines = await template.describe()
        assert (lines[0]["kind"], lines[-1]["kind"]) == ("ready", "end")
        assert {line["subject"] for line in lines[1:-1]} == set(project().modules)
        assert lines[0]["crewai_version"] == template.crewai_version
        assert template.pid == 0, "no template was forked"
        await template.load()
        assert (await Runner(template)("house.plain:Steps")).status is Status.COMPLETED
    finally:
        await template.close()


@pytest.mark.parametrize("isolation", ["namespace", "subreaper"])
async def test_endless_import_ends_with_the_look_at_it(
    namespace_template: Template, subreaper_template: Template, isolation: str
) -> None:
    warm = namespace_template if isolation == "namespace" else subreaper_template
    template = _with_modules(warm, "house.hanging", "house.plain", import_seconds=2)
    before = _looks(template)
    try:
        lines = {line["subject"]: line for line in await template.describe() if line["kind"] == "looked"}
        assert lines["house.hanging"]["broken"][0]["error_type"] == "ImportTimeout"
        assert lines["house.plain"]["flows"]
        assert _looks(template) <= before, "nothing of the describer is left"
    finally:
        await template.close()


@pytest.mark.parametrize("isolation", ["namespace", "subreaper"])
async def test_describer_that_keeps_to_no_time_is_killed(
    namespace_template: Template, subreaper_template: Template, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of an hour and gets a second."""
    warm = namespace_template if isolation == "namespace" else subreaper_template
    template = _with_modules(warm, "house.hanging", "house.plain", import_seconds=1)
    before = _looks(template)
    told = description.order(template.project, 3600)
    monkeypatch.setattr(description, "order", lambda *_: told)
    monkeypatch.setattr(description, "SLACK_SECONDS", 2)
    try:
        lines = await template.describe()
        assert [line.get("subject") for line in lines] == [None, "house.plain"], "what was told by then counts"
        assert _looks(template) <= before
    finally:
        await template.close()


async def test_description_that_nobody_waits_for_spoils_no_later_one(namespace_template: Template) -> None:
    template = await namespace_template.begun_anew()
    before = _looks(template)
    try:
        for asked in range(4):
            given_up = asyncio.create_task(template.describe())
            for _ in range(asked):
                await asyncio.sleep(0)
            given_up.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await given_up
        assert (await template.describe())[-1]["kind"] == "end"
        await template.load()
        assert not template.is_gone, "it holds its own process, and not one of those"
        assert (await Runner(template)("house.plain:Steps")).status is Status.COMPLETED
        template._control.close()  # type: ignore[union-attr]
        async with asyncio.timeout(20):
            while not _looks(template) <= before:  # noqa: ASYNC110 - processes that nobody holds a descriptor of
                await asyncio.sleep(0.05)
    finally:
        await template.close()


async def test_base_that_has_threads_describes_nothing(
    namespace_template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = await namespace_template.begun_anew()
    monkeypatch.setattr(template._base, "is_unsafe", True)
    try:
        with pytest.raises(NotDescribed, match="threads"):
            await template.describe()
    finally:
        await template.close()


@pytest.fixture(scope="module")
async def doomed(storage: Path) -> Template:
    """One whose launcher was killed."""
    template = await Template.start(project("house.plain"), secrets=[], storage=storage, import_seconds=FAR)
    template._base._process.kill()
    template._base._process.wait()
    return template


async def test_base_that_is_gone_describes_nothing(doomed: Template) -> None:
    with pytest.raises(NotDescribed):
        await doomed.describe()


async def test_template_whose_launcher_was_killed_is_let_go_without_complaint(doomed: Template) -> None:
    await doomed.retire()


async def test_changed_dotenv_is_seen_by_the_next_template_and_description(storage: Path, tmp_path: Path) -> None:
    """CrewAI reads it as well, when it is imported; but that is once, and in the base."""
    (tmp_path / "reads.py").write_text(
        "import os\nfrom crewai.flow import Flow, start\nclass Reads(Flow):\n"
        "    __doc__ = os.environ['WORD']\n    @start()\n    def go(self): return os.environ['WORD']\n"
    )
    (tmp_path / ".env").write_text("WORD=old\n")
    reads = dataclasses.replace(project("reads"), root=tmp_path, import_paths=(tmp_path,))
    template = await Template.start(reads, secrets=[], storage=storage, import_seconds=FAR)
    try:
        (tmp_path / ".env").write_text("WORD=young\n")
        assert template.is_stale()
        renewed = await template.renewed()
        try:
            assert (await renewed.describe())[1]["flows"][0]["description"] == "young"
            assert (await Runner(renewed)("reads:Reads")).output_state["result"] == "young"
        finally:
            await renewed.close()
    finally:
        await template.close()


def _with_modules(warm: Template, *modules: str, import_seconds: float) -> Template:
    """On top of a CrewAI that is loaded already."""
    return _with_project(warm, project(*modules), import_seconds=import_seconds)


def _with_project(warm: Template, project: Project, **facts: Any) -> Template:
    return Template(warm._base.shared(), dataclasses.replace(warm._sources, project=project, **facts))


def _looks(template: Template) -> set[int]:
    """Everything below the launcher."""
    return set(namespace.descendants(template._base._process.pid))


async def test_retired_template_lets_its_run_end(namespace_template: Template) -> None:
    template = await namespace_template.renewed()
    run = asyncio.create_task(Runner(template)("house.faults:Slow", {"seconds": 0.3}))
    while not template._runs:  # noqa: ASYNC110 - the template offers no event for it
        await asyncio.sleep(0.01)
    await template.retire()
    assert (await run).status is Status.COMPLETED
    assert (await Runner(template)("house.plain:Steps")).error_type == "ProcessNotStarted"


async def test_death_of_the_template_ends_its_runs_with_an_outcome(namespace_template: Template) -> None:
    template = await namespace_template.renewed()
    runner = Runner(template)
    runner.recording.on_log = lambda _: signal.pidfd_send_signal(template._pidfd, signal.SIGKILL)
    outcome = await runner("house.faults:Slow", {"seconds": 20})
    assert (outcome.status, outcome.error_type) == (Status.FAILED, "ProcessKilled")
    again = await runner("house.plain:Steps")
    assert again.error_type == "ProcessNotStarted" or again.status is Status.COMPLETED
    await template.close()


async def test_interpreter_without_crewai_is_told_with_its_own_words(storage: Path, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {REAL_PYTHON} -S -E "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(ProjectUnusable, match="CrewAI"):
        await Template.start(
            dataclasses.replace(project(), python=bare), secrets=[], storage=storage, import_seconds=FAR
        )
    with pytest.raises(ProjectUnusable, match="does not start"):
        await Template.start(
            dataclasses.replace(project(), python=tmp_path / "nothing"), secrets=[], storage=storage, import_seconds=FAR
        )


_WORKER = """
import asyncio, json, sys
from pathlib import Path
from uuid import UUID
sys.path.insert(0, {here!r})
from tests.runner.conftest import Recording, order, project
from flowledger.runner.limits import Limits
from flowledger.runner.process import Template, run

async def main():
    storage, isolation = sys.argv[1:]
    template = await Template.start(
        project(), secrets=[], storage=Path(storage), import_seconds=60, isolation=isolation or None
    )
    print(template._base._process.pid, flush=True)
    async with asyncio.TaskGroup() as group:
        while line := await asyncio.to_thread(sys.stdin.readline):
            kind, lease, execution_id = json.loads(line)
            inputs = {{"kind": kind, "mark": "-", "stay": True}}
            facts = {{"execution_id": UUID(execution_id), "lease_seconds": lease}}
            recording = Recording(on_log=lambda line: print("left", flush=True))
            group.create_task(run(template, order("house.descendants:Leaves", inputs, **facts), Limits(), recording))

asyncio.run(main())
"""


class Worker:
    """A worker in a process of its own, whose runs leave processes behind."""

    def __init__(self, process: asyncio.subprocess.Process, launcher: int) -> None:
        self.process = process
        self.launcher = launcher

    @classmethod
    async def start(cls, storage: Path, isolation: str) -> Worker:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _WORKER.format(here=str(Path(__file__).parents[2])),
            str(storage),
            isolation,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return cls(process, int(await _line(process)))

    async def begin(self, kind: str, *, lease: float = 30) -> UUID:
        """A run, in the midst of it."""
        execution_id = uuid4()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([kind, lease, str(execution_id)]).encode() + b"\n")
        assert await _line(self.process) == b"left\n"
        assert processes_of(execution_id)
        return execution_id


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    return await asyncio.wait_for(process.stdout.readline(), 60)


@pytest.fixture(scope="module")
async def workers(storage: Path) -> AsyncIterator[dict[str, Worker]]:
    """One in each isolation, for the tests from here on; the last of them kills each."""
    isolations = {"namespace": "", "subreaper": "subreaper"}
    started = await asyncio.gather(*(Worker.start(storage, isolation) for isolation in isolations.values()))
    yield dict(zip(isolations, started, strict=True))
    for worker in started:
        if worker.process.returncode is None:
            worker.process.kill()
            await worker.process.wait()


async def test_stopped_worker_loses_its_run_after_a_lease(workers: dict[str, Worker]) -> None:
    worker = workers["namespace"]
    execution_id = await worker.begin("plain", lease=2)
    worker.process.send_signal(signal.SIGSTOP)
    try:
        assert await all_gone(execution_id, within=3)
    finally:
        worker.process.send_signal(signal.SIGCONT)


async def test_sweep_takes_what_lost_its_supervisor_and_nothing_else(workers: dict[str, Worker]) -> None:
    kept, orphan = await workers["subreaper"].begin("plain"), uuid4()
    left = await asyncio.create_subprocess_exec("sleep", "60", env={"FLOWLEDGER_RUN": str(orphan)})
    assert sweep_leftovers() >= 1
    assert await asyncio.wait_for(left.wait(), 2) == -signal.SIGKILL
    assert processes_of(kept)


@pytest.mark.parametrize("isolation", ["namespace", "subreaper"])
async def test_killed_worker_leaves_nothing_behind(workers: dict[str, Worker], isolation: str) -> None:
    worker = workers[isolation]
    runs = {kind: await worker.begin(kind) for kind in ("double fork", "plain fork", "plain")}
    worker.process.kill()
    await worker.process.wait()
    gone = await asyncio.gather(*(all_gone(execution_id, within=2) for execution_id in runs.values()))
    assert all(gone), {kind: processes_of(execution_id) for kind, execution_id in runs.items()}
    assert await _ended(worker.launcher, within=2)


async def _ended(pid: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while _is_alive(pid):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
