"""A template is warm, single-threaded, free of credentials, and replaced when the project changes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest

from flowledger.domain.status import Status
from flowledger.errors import ProjectUnusable
from flowledger.runner.process import Template, sweep_leftovers
from tests.runner.conftest import ROOT, SECRET, Runner, project
from tests.runner.test_stop import all_gone, processes_of

FAR = 60.0
REAL_PYTHON = Path(sys.executable).resolve()


async def start(storage: Path, *modules: str, import_seconds: float = FAR, isolation: str | None = None) -> Template:
    return await Template.start(
        project(*modules),
        secrets=[SECRET],
        storage=storage,
        import_seconds=import_seconds,
        isolation=isolation,  # type: ignore[arg-type]
    )


async def test_modules_unfit_for_forking_start_fresh_and_say_so(storage: Path) -> None:
    template = await start(storage, "house.plain", "house.threads", "house.broken", "house.crashing", import_seconds=20)
    try:
        runner = Runner(template)
        forked = await runner("house.plain:Steps")
        assert (forked.status, forked.metadata["start"]) == (Status.COMPLETED, "fork")
        fresh = await runner("house.threads:Threaded")
        assert (fresh.output_state["result"], fresh.metadata["start"]) == ("ran", "fresh interpreter"), fresh
        broken = await runner("house.broken:Broken")
        assert (broken.error_type, broken.error_message) == ("LookupError", "this module is broken")
        crashed = await runner("house.crashing:Any")
        assert (crashed.error_type, crashed.metadata["exit_status"]) == ("ProcessExited", "7")
        told = "\n".join(template.warnings)
        assert "house.threads starts threads when it is imported (restless)" in told
        assert "house.broken cannot be imported: LookupError" in told
        assert "house.crashing ends the interpreter" in told
        assert "house.plain" not in told
    finally:
        await template.close()


async def test_endless_import_is_given_up_and_the_others_still_run(storage: Path, namespace_template: Template) -> None:
    """On top of a CrewAI that is loaded already, so that the time limit is the module's alone."""
    sources = dataclasses.replace(
        namespace_template._sources, project=project("house.hanging", "house.plain"), import_seconds=1
    )
    template = Template(namespace_template._base.shared(), sources)
    await template._load(sources.project.modules)
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


async def test_changed_source_makes_the_template_stale_and_the_next_one_runs_it(storage: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "project")
    moved = dataclasses.replace(
        project("house.plain"), root=tmp_path / "project", import_paths=(tmp_path / "project/src",)
    )
    old = await Template.start(moved, secrets=[], storage=storage, import_seconds=FAR)
    try:
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


async def test_template_whose_launcher_was_killed_is_let_go_without_complaint(storage: Path) -> None:
    template = await Template.start(project("house.plain"), secrets=[], storage=storage, import_seconds=FAR)
    template._base._process.kill()
    template._base._process.wait()
    await template.retire()


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
import asyncio, sys
from pathlib import Path
from uuid import UUID
sys.path.insert(0, {here!r})
from tests.runner.conftest import Recording, order, project
from flowledger.runner.limits import Limits
from flowledger.runner.process import Template, run

async def main():
    template = await Template.start(
        project(), secrets=[], storage=Path(sys.argv[2]), import_seconds=60, isolation=sys.argv[3] or None
    )
    recording = Recording(on_log=lambda line: print(template.isolation, template._base._process.pid, flush=True))
    inputs = {{"kind": sys.argv[4], "mark": "-", "stay": True}}
    facts = {{"execution_id": UUID(sys.argv[1]), "lease_seconds": float(sys.argv[5])}}
    await run(template, order("house.descendants:Leaves", inputs, **facts), Limits(), recording)

asyncio.run(main())
"""


async def _worker(
    storage: Path, execution_id: object, isolation: str, kind: str, *, lease: float = 30
) -> tuple[asyncio.subprocess.Process, int]:
    """A worker in its own process, in the middle of a run; and its launcher's pid."""
    here = str(Path(__file__).parents[2])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _WORKER.format(here=here),
        str(execution_id),
        str(storage),
        isolation,
        kind,
        str(lease),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 60)).split()
    return process, int(line[1])


@pytest.mark.parametrize("isolation", ["", "subreaper"])
@pytest.mark.parametrize("kind", ["double fork", "plain fork"])
async def test_killed_worker_leaves_nothing_behind(storage: Path, isolation: str, kind: str) -> None:
    execution_id = uuid4()
    worker, launcher = await _worker(storage, execution_id, isolation, kind)
    assert processes_of(execution_id)
    worker.kill()
    await worker.wait()
    assert await all_gone(execution_id, within=2), processes_of(execution_id)
    assert await _ended(launcher, within=2)


async def test_stopped_worker_loses_its_run_after_a_lease(storage: Path) -> None:
    execution_id = uuid4()
    worker, _ = await _worker(storage, execution_id, "", "plain", lease=2)
    worker.send_signal(signal.SIGSTOP)
    try:
        assert await all_gone(execution_id, within=3)
    finally:
        worker.kill()
        await worker.wait()


async def test_sweep_takes_what_lost_its_supervisor_and_nothing_else(storage: Path) -> None:
    orphan, kept = uuid4(), uuid4()
    worker, _ = await _worker(storage, kept, "subreaper", "plain")
    left = await asyncio.create_subprocess_exec("sleep", "60", env={"FLOWLEDGER_RUN": str(orphan)})
    try:
        assert sweep_leftovers() >= 1
        assert await asyncio.wait_for(left.wait(), 2) == -signal.SIGKILL
        assert processes_of(kept)
    finally:
        worker.kill()
        await worker.wait()
    assert await all_gone(kept, within=2)


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
