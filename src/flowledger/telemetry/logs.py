"""The worker's own log: facts with fields, for a person on a terminal or as JSON lines. Always on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import structlog

from flowledger.runner.redact import own

_Fact = structlog.typing.EventDict


def configure_logs(
    log_format: str, *, level: int = logging.INFO, listeners: Sequence[structlog.typing.Processor] = ()
) -> None:
    """`log_format` is `console` or `json`. `listeners` hear every fact, those too that are not worth a line."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        # A traceback with local variables would show more than anybody wants to keep.
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            *listeners,
            _from(level),
            *_stamp(log_format),
            renderer,
            _redact,
        ],
        # With nobody to hear it, a fact below the level costs no more than the call.
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if listeners else level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(handlers=[_FromLibraries()], level=logging.WARNING, force=True)


def _from(level: int) -> structlog.typing.Processor:
    """Ends the way of facts below the level."""

    levels = logging.getLevelNamesMapping()

    def from_level(_: object, __: str, fact: _Fact) -> _Fact:
        if levels[fact["level"].upper()] < level:
            raise structlog.DropEvent
        return fact

    return from_level


def _redact(_logger: object, _method: str, line: Any) -> Any:
    """What flows, libraries and the database said is in these lines too."""
    return own().text(line)


class _FromLibraries(logging.Handler):
    """What libraries warn of (the pool, of connections that it lost) becomes a fact of ours, in our format."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(record.levelno, "library_warning", reason=record.getMessage())


def _stamp(log_format: str) -> list[structlog.typing.Processor]:
    if log_format == "json":
        return [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.format_exc_info]
    return [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)]
