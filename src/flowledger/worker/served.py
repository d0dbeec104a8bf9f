"""The project as a worker serves it now: its flows with their rows in the ledger, and a warm template for them.

A changed source gives new rows and a fresh template; runs in flight end on the one they began with.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

import structlog

from flowledger import registry
from flowledger.database.session import Database
from flowledger.domain.controls import FlowControls
from flowledger.domain.flow import Discovery
from flowledger.domain.project import Project
from flowledger.errors import FlowledgerError, ProjectUnusable
from flowledger.ledger import flows
from flowledger.ledger.flows import Remembered
from flowledger.runner.process import Template

_log = structlog.get_logger("flowledger.project")

_RELOAD_AGAIN_SECONDS = 10.0
"""After a reload that failed as a whole; loading takes seconds of a processor."""


Stamps = dict[str, tuple[int, int]]
"""File -> time of change and size."""


@dataclass(frozen=True)
class Serving:
    """One state of the project: its flows by their ids in the ledger, and the template to run them from.

    `sources` are the project's files at that time, if a module of it could not be imported, else None: the template
    knows the files that it has loaded, and a repair may lie in any other.
    """

    template: Template
    flows: dict[UUID, Remembered]
    sources: Stamps | None = None
    declared: Stamps = field(default_factory=dict)
    """The files that say what applies to the flows."""


@dataclass(frozen=True)
class Surroundings:
    """What flow code finds around it. It must not see the values `secrets` and what the directories `hidden` hold;
    `storage` is where CrewAI keeps files of its own.
    """

    secrets: frozenset[str]
    hidden: tuple[Path, ...]
    storage: Path


class ServedProject:
    """Keeps one project ready."""

    def __init__(
        self,
        database: Database,
        project: Project,
        around: Surroundings,
        *,
        import_seconds: float,
    ) -> None:
        self._database = database
        self._project = project
        self._around = around
        self._import_seconds = import_seconds
        self._serving: Serving | None = None
        self._reload_not_before = 0.0
        self._refreshing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def current(self) -> Serving:
        """The project as its files are now. Loads it the first time, and again after a change.

        Raises ProjectUnusable when it cannot be loaded at all; a change that makes it so is logged, and the state
        before stays.
        """
        async with self._refreshing:
            if self._serving is None:
                self._serving = await self._load(self._warm_template())
            elif time.monotonic() >= self._reload_not_before and await self._is_stale(self._serving):
                await self._reload(self._serving)
            return self._serving

    async def restarted(self, failed: Serving) -> Serving:
        """The project on a new template, after the one of `failed` could make no process.

        Raises ProjectUnusable.
        """
        async with self._refreshing:
            if self._serving is failed:
                _log.warning("template_restarted")
                self._serving = replace(failed, template=await self._another_template(failed.template))
                self._retire(failed.template)
            assert self._serving is not None
            return self._serving

    async def close(self) -> None:
        """Ends the template's processes, once nothing runs from them."""
        if self._serving is not None:
            self._retire(self._serving.template)
        await asyncio.gather(*self._retiring)

    async def _reload(self, before: Serving) -> None:
        try:
            self._serving = await self._load(before.template.renewed())
        except FlowledgerError as trouble:
            _log.error("project_not_reloaded", reason=str(trouble))
            self._reload_not_before = time.monotonic() + _RELOAD_AGAIN_SECONDS
            return
        _log.info("project_reloaded", flows=[known.flow.key for known in self._serving.flows.values()])
        self._retire(before.template)

    async def _is_stale(self, serving: Serving) -> bool:
        if serving.template.is_stale() or serving.declared != _declared(self._project):
            return True
        return serving.sources is not None and serving.sources != await asyncio.to_thread(_sources, self._project)

    async def _load(self, warming: Awaitable[Template]) -> Serving:
        declared = _declared(self._project)
        sources = await asyncio.to_thread(_sources, self._project)
        discovering = asyncio.create_task(self._discover())
        template = await _or_cancelled(warming, discovering)
        try:
            controls = registry.controls(self._project)
            flows_by_id = await self._remember(template, await discovering, controls)
            return Serving(template, flows_by_id, sources if discovering.result().broken else None, declared)
        except BaseException:
            await template.close()
            raise

    def _retire(self, template: Template) -> None:
        """Runs in flight end on the template they began with; then it goes."""
        task = asyncio.create_task(template.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _remember(
        self, template: Template, discovery: Discovery, controls: dict[str, FlowControls]
    ) -> dict[UUID, Remembered]:
        for broken in discovery.broken:
            _log.warning("module_broken", module=broken.module, error=f"{broken.error_type}: {broken.error_message}")
        for warning in dict.fromkeys((*discovery.warnings, *template.warnings)):
            _log.warning("project_warning", warning=warning)
        for key in controls.keys() - {flow.key for flow in discovery.flows}:
            _log.warning("project_warning", warning=f"[tool.flowledger.flows.{key}] names no flow of this project")
        async with self._database.service() as connection:
            remembered = await flows.remember(connection, discovery.flows, controls)
        return {known.id: known for known in remembered}

    async def _discover(self) -> Discovery:
        return await asyncio.to_thread(
            registry.discover,
            self._project,
            seconds=self._import_seconds,
            secrets=self._around.secrets,
            storage=self._around.storage,
        )

    async def _another_template(self, failed: Template) -> Template:
        """On top of the CrewAI that is loaded already, if that process lives: importing it takes seconds."""
        try:
            return await failed.renewed()
        except ProjectUnusable:
            return await self._warm_template()

    async def _warm_template(self) -> Template:
        return await Template.start(
            self._project,
            secrets=self._around.secrets,
            hidden=self._around.hidden,
            storage=self._around.storage,
            import_seconds=self._import_seconds,
        )


async def _or_cancelled(first: Awaitable[Template], beside: asyncio.Task[Discovery]) -> Template:
    """Waits for `first`; when it fails, what went on beside it is not waited for."""
    try:
        return await first
    except BaseException:
        beside.cancel()
        raise


def _declared(project: Project) -> Stamps:
    """The files that may say something about the flows."""
    return _stamps(map(str, registry.control_files(project)))


def _sources(project: Project) -> Stamps:
    """The Python files below the project's import paths, without what tools and environments keep there."""
    stamps: Stamps = {}
    for path in project.import_paths:
        for folder, folders, files in os.walk(path):
            folders[:] = [name for name in folders if not name.startswith(".") and name not in _NOT_THE_PROJECTS]
            stamps |= _stamps(os.path.join(folder, name) for name in files if name.endswith(".py"))  # noqa: PTH118
    return stamps


def _stamps(files: Iterable[str]) -> Stamps:
    stamps = {}
    for file in files:
        with suppress(OSError):
            facts = os.stat(file)  # noqa: PTH116 - many files, every second
            stamps[file] = (facts.st_mtime_ns, facts.st_size)
    return stamps


_NOT_THE_PROJECTS = {"__pycache__", "node_modules", "site-packages", "venv"}
