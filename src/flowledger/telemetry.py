"""The worker's own log: facts with fields, for a person on a terminal or as JSON lines. Always on stderr."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logs(log_format: str, *, level: int = logging.INFO) -> None:
    """`log_format` is `console` or `json`."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=24)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            *_stamp(log_format),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(handlers=[_FromLibraries()], level=logging.WARNING, force=True)


class _FromLibraries(logging.Handler):
    """What libraries warn of (the pool, of connections that it lost) becomes a fact of ours, in our format."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(record.levelno, "library_warning", reason=record.getMessage())


def _stamp(log_format: str) -> list[structlog.typing.Processor]:
    if log_format == "json":
        return [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.format_exc_info]
    return [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)]
