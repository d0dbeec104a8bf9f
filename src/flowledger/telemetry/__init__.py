"""Renders what others record: the worker's own log, traces of executions, metrics.

Nothing in here is asked for by the rooms that do the work: they log facts, and the ledger holds the rest. Each part
listens to those facts (`hear`, a structlog processor) and is put together by the command line.
"""
