"""Claims executions, runs each in a child of its own, and records how it ended, until asked to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from uuid import UUID, uuid4

import structlog

from flowledger import inputs
from flowledger.database.listen import listen
from flowledger.database.session import UNREADABLE, Database
from flowledger.domain.execution import Claim, Finish, Outcome
from flowledger.domain.project import Project
from flowledger.domain.status import Status
from flowledger.domain.usage import exact_text
from flowledger.engines.postgres import QUEUE_CHANNEL, PostgresEngine
from flowledger.errors import FlowledgerError, InvalidInput
from flowledger.ledger import executions, workers
from flowledger.ledger.flows import Remembered
from flowledger.runner import process
from flowledger.runner.limits import ErrorType, Limits
from flowledger.runner.redact import own
from flowledger.settings import Settings
from flowledger.worker.accounts import Accounts
from flowledger.worker.ending import ended
from flowledger.worker.leases import LeaseKeeper, boottime
from flowledger.worker.reaper import keep_reaping
from flowledger.worker.records import Records
from flowledger.worker.secrecy import keep_memory_private
from flowledger.worker.served import ServedProject, Serving, Surroundings
from flowledger.worker.trouble import Trouble

_log = structlog.get_logger("flowledger.worker")

WISHES_CHANNEL = "flowledger_wishes"
_RETRY_SECONDS = 1.0
_FINISH_SECONDS = 10.0
_FRESH_SECONDS = 1.0


class Worker:
    """One worker process. Its identity is new at each start.

    `among`, unless None, narrows the work to these executions.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        project: Project,
        around: Surroundings,
        *,
        among: Sequence[UUID] | None = None,
    ) -> None:
        self.id = uuid4()
        self._settings = settings
        self._database = database
        self._claim_trouble = Trouble("claim_failed")
        self._engine = PostgresEngine(
            database,
            self.id,
            lease_seconds=settings.lease_seconds,
            poll_seconds=settings.poll_seconds,
            clock=boottime,
            answered=self._claim_trouble.over,
            among=among,
        )
        self._leases = LeaseKeeper(database, self.id, lease_seconds=settings.lease_seconds)
        self._records = Records(database)
        self._accounts = Accounts(database)
        self._project = ServedProject(database, project, around, import_seconds=settings.import_seconds)
        self._running: set[asyncio.Task[None]] = set()
        self._limits: dict[UUID, Limits] = {}
        self._slot_freed = asyncio.Event()
        self._draining = False
        self._stopping = False
        self._stop_later: asyncio.TimerHandle | None = None
        self._enlisted: Serving | None = None
        self.ready = asyncio.Event()
        """Set once the project is loaded and the queue is watched."""

    async def run(self) -> None:
        """Works until `drain` or `stop_now`; then waits for what runs.

        Raises ProjectUnusable, DatabaseUnreachable when it cannot even begin.
        """
        keep_memory_private()
        if swept := process.sweep_leftovers():
            _log.warning("leftovers_swept", processes=swept)
        async with AsyncExitStack() as leaving:
            leaving.push_async_callback(self._project.close)
            serving = await self._project.current()
            await self._enlist(serving)
            self._enlisted = serving
            leaving.push_async_callback(self._discharge)
            background = [
                asyncio.create_task(work, name=name)
                for name, work in (
                    ("leases", self._leases.keep()),
                    ("records", self._records.keep_writing()),
                    ("reaper", self._reap()),
                    ("project", self._keep_project_fresh()),
                    ("listen", listen(self._listen_conninfo, [QUEUE_CHANNEL, WISHES_CHANNEL], self._woken)),
                )
            ]
            leaving.push_async_callback(ended, background)
            warming = asyncio.create_task(self._accounts.warm(), name="prices")
            leaving.push_async_callback(ended, [warming])
            claiming = asyncio.create_task(self._claim_until_stopped(), name="claim")
            self.ready.set()
            _log.info("worker_ready", worker=str(self.id), flows=[known.flow.key for known in serving.flows.values()])
            try:
                # None of these ends by itself, but for the claiming once it is told to.
                await _first_of(claiming, *background)
            finally:
                self.drain()
                await claiming
                if self._running:
                    await asyncio.wait(self._running)
                if self._stop_later is not None:
                    self._stop_later.cancel()

    def admit(self, execution: UUID) -> None:
        """Adds to the executions that the work is narrowed to."""
        self._engine.admit(execution)

    @property
    def serves(self) -> frozenset[UUID]:
        """Ids of the flows that it claims."""
        return frozenset(self._enlisted.flows) if self._enlisted else frozenset()

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        """Claims nothing more and lets what runs come to its end, within `drain_seconds` if they are set."""
        if not self._draining:
            _log.info("worker_draining", running=len(self._running), seconds=self._settings.drain_seconds)
            if self._settings.drain_seconds is not None:
                loop = asyncio.get_running_loop()
                self._stop_later = loop.call_later(self._settings.drain_seconds, self.stop_now)
        self._draining = True
        self._engine.close()
        self._slot_freed.set()

    def stop_now(self) -> None:
        """Ends what runs, as failed with WorkerStopped."""
        self.drain()
        self._stopping = True
        for limits in self._limits.values():
            limits.stop_worker()

    async def _claim_until_stopped(self) -> None:
        while not self._draining:
            await self._free_slot()
            if self._records.held_up:
                # What runs cannot be recorded: not the time to start more.
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            try:
                await self._fresh()
                claims = await self._engine.next(self._timeouts, self._settings.slots - len(self._running))
            except FlowledgerError as error:
                self._claim_trouble.met(error)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            for claim in claims:
                self._start(claim, self._engine.asked_at)

    async def _free_slot(self) -> None:
        while len(self._running) >= self._settings.slots and not self._draining:
            self._slot_freed.clear()
            await self._slot_freed.wait()

    def _timeouts(self) -> dict[UUID, float]:
        if self._enlisted is None:
            return {}
        default = self._settings.timeout_seconds
        return {id_: known.controls.timeout_seconds or default for id_, known in self._enlisted.flows.items()}

    async def _fresh(self) -> Serving:
        """The project as its files are now, its flows known to the ledger."""
        serving = await self._project.current()
        if serving is not self._enlisted:
            try:
                await self._enlist(serving)
            except FlowledgerError as trouble:
                _log.warning("worker_not_enlisted", reason=str(trouble))
            else:
                self._enlisted = serving
                self._engine.wake()
        return serving

    async def _keep_project_fresh(self) -> None:
        """A change is seen while nothing is to do, so that inputs are checked against the flow as it is now."""
        while True:
            await asyncio.sleep(_FRESH_SECONDS)
            try:
                await self._fresh()
            except FlowledgerError as trouble:
                _log.warning("project_not_fresh", reason=str(trouble))

    def _start(self, claim: Claim, claimed_at: float) -> None:
        task = asyncio.create_task(self._carry(claim, claimed_at), name=claim.execution_key)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._slot_freed.set()
        if not task.cancelled() and (error := task.exception()):
            _log.error("execution_mishandled", execution=task.get_name(), exc_info=error)

    # -- One execution ------------------------------------------------------------------------------------------------

    async def _carry(self, claim: Claim, claimed_at: float) -> None:
        log = _log.bind(execution=str(claim.execution_id), flow=claim.flow_key)
        log.info("execution_claimed", fence=claim.fence)
        limits = Limits()
        self._limits[claim.execution_id] = limits
        if self._stopping:
            limits.stop_worker()
        try:
            with self._leases.holding(claim, limits, claimed_at):
                outcome = await self._outcome(claim, limits)
                lasted_ms = round((boottime() - claimed_at) * 1000)
                await self._records.flush((claim.execution_id, claim.fence))
                answer = await self._finish(claim, outcome)
        finally:
            del self._limits[claim.execution_id]
        log.info(
            "execution_ended",
            status=str(outcome.status),
            error=outcome.error_type,
            answer=str(answer),
            duration_ms=lasted_ms - (outcome.began_after_ms or 0),
            tokens=outcome.token_count,
            cost_usd=None if outcome.cost_usd is None else exact_text(outcome.cost_usd),
        )

    async def _outcome(self, claim: Claim, limits: Limits) -> Outcome:
        """How it ended. Even a fault of the worker's own is an outcome: the row must not stay running."""
        try:
            return await self._run(claim, limits)
        except Exception as fault:
            _log.exception("execution_mishandled", execution=str(claim.execution_id))
            return Outcome(
                Status.FAILED,
                error_type="WorkerFault",
                error_message=own().text(f"The worker could not carry this out. {type(fault).__name__}: {fault}"),
            )

    async def _run(self, claim: Claim, limits: Limits) -> Outcome:
        # Files may have changed while the queue was empty; the lease is kept while they load.
        serving = await self._fresh()
        known = serving.flows.get(claim.flow_id)
        if known is None:
            return Outcome(
                Status.FAILED,
                error_type="FlowGone",
                error_message=f"The project no longer holds the flow {claim.flow_key}.",
            )
        try:
            _check(known, claim)
        except InvalidInput as wrong:
            return Outcome(Status.FAILED, error_type="InvalidInput", error_message=own().text(str(wrong)))
        outcome = await self._run_in_child(claim, serving, known, limits)
        if outcome.error_type == ErrorType.PROCESS_NOT_STARTED:
            # The flow's code did not run, so a second attempt starts it once at most.
            serving = await self._project.restarted(serving)
            outcome = await self._run_in_child(claim, serving, known, limits)
        return replace(outcome, metadata={**outcome.metadata, "flow_version": known.version, "worker_id": str(self.id)})

    async def _run_in_child(self, claim: Claim, serving: Serving, known: Remembered, limits: Limits) -> Outcome:
        recorder = self._records.of((claim.execution_id, claim.fence))
        account = await self._accounts.open(
            claim, known.controls, limits, recorder.call, serving.template.site_packages
        )
        outcome = await process.run(serving.template, self._order(claim, known), limits, recorder, account)
        return recorder.told_in(outcome)

    def _order(self, claim: Claim, known: Remembered) -> process.Order:
        return process.Order(
            execution_id=claim.execution_id,
            flow_key=claim.flow_key,
            entry_point=known.flow.entry_point,
            inputs=claim.inputs,
            timeout_seconds=claim.timeout_seconds or self._settings.timeout_seconds,
            max_output_bytes=self._settings.max_output_bytes,
            max_log_bytes=self._settings.max_log_bytes,
            max_events=self._settings.max_events,
            grace_seconds=self._settings.grace_seconds,
            lease_seconds=self._settings.lease_seconds,
            memory_bytes=known.controls.memory_bytes,
            processes=known.controls.processes,
            open_files=known.controls.open_files,
            preview_characters=self._previews(known),
            redact=known.controls.redact,
        )

    def _previews(self, known: Remembered) -> int:
        of_flow = known.controls.preview_characters
        return self._settings.preview_characters if of_flow is None else of_flow

    async def _finish(self, claim: Claim, outcome: Outcome) -> Finish:
        """Asks until there is an answer: an outcome that is known is not given up because the database is away."""
        trouble = Trouble("outcome_not_written")
        while True:
            try:
                # No row ends before all calls that its sum counts are there.
                await self._records.write_calls((claim.execution_id, claim.fence))
                async with self._database.service() as connection:
                    answer = await executions.finish(connection, claim.execution_id, claim.fence, outcome)
            except FlowledgerError as error:
                trouble.met(error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                trouble.over()
                return answer

    # -- Around it ----------------------------------------------------------------------------------------------------

    @property
    def _listen_conninfo(self) -> str:
        direct = self._settings.listen_url
        return self._database.conninfo if direct is None else direct.get_secret_value()

    def _woken(self, channel: str) -> None:
        if channel == QUEUE_CHANNEL:
            self._engine.wake()
        else:
            self._leases.wake()

    async def _enlist(self, serving: Serving) -> None:
        async with self._database.service() as connection:
            await workers.enlist(connection, self.id, self._settings.slots, serving.flows)

    async def _discharge(self) -> None:
        try:
            async with self._database.service() as connection:
                await workers.discharge(connection, self.id)
        except FlowledgerError as trouble:
            _log.warning("worker_not_discharged", reason=str(trouble))

    async def _reap(self) -> None:
        await keep_reaping(
            self._database,
            grace_seconds=self._settings.grace_seconds,
            pause_seconds=self._settings.lease_seconds / 8,
        )


def _check(known: Remembered, claim: Claim) -> None:
    if UNREADABLE in claim.inputs:
        raise InvalidInput("inputs", f"cannot be read: {claim.inputs[UNREADABLE]}")
    inputs.check(known.flow.input_schema, claim.inputs)


async def _first_of(*tasks: asyncio.Task[None]) -> None:
    """Waits for the first to end. Raises its error, if it ended with one."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
