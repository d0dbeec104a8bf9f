"""A Postgres on the network, and two workers that each reach it through a proxy of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.product import PROJECT, Product, WorkerProcess
from tests.bare_postgres import BareServer, installed
from tests.survival.stage import NetworkPostgres, Proxy, free_port, proxied

LEASE_SECONDS, GRACE_SECONDS, POLL_SECONDS, SLOTS = 3.0, 1.0, 1.0, 2
ANSWER_SECONDS = 8.0
"""How long these workers wait for an answer of the database before they take it for gone; others wait half a minute."""

_IMPATIENT = f"""
from flowledger.cli import main
from flowledger.database import session
session.ANSWER_SECONDS = {ANSWER_SECONDS}
session.Database.service.__wrapped__.__defaults__ = ({ANSWER_SECONDS},)
main()
"""


@dataclass(frozen=True)
class Distant:
    """A worker and the proxy between it and the database."""

    worker: WorkerProcess
    proxy: Proxy


@pytest.fixture(scope="package")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkPostgres]:
    major, binaries = list(installed().items())[-1]
    server = BareServer(major, binaries, tmp_path_factory.mktemp("network"), free_port())
    postgres = NetworkPostgres(server, tmp_path_factory.mktemp("data"))
    postgres.start()
    yield postgres
    postgres.down("immediate")


@pytest.fixture(scope="package")
def product(network: NetworkPostgres) -> Product:
    return Product(network, PROJECT, uuid4())


@pytest.fixture(scope="package")
def workers(
    product: Product, network: NetworkPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Distant]]:
    """Two with brief leases, for the whole folder: no test may need to start them anew."""
    logs = tmp_path_factory.mktemp("logs")
    with ExitStack() as stack:
        both = [_distant(stack, product, network, logs / str(number)) for number in range(2)]
        for distant in both:
            distant.worker.wait_until_ready()
        yield both


def _distant(stack: ExitStack, product: Product, network: NetworkPostgres, log: Path) -> Distant:
    proxy = stack.enter_context(proxied(network.port))
    worker = product.worker(
        log=log,
        ready=False,
        program=("-c", _IMPATIENT),
        database_url=network.url("flowledger_worker", proxy.port),
        slots=SLOTS,
        lease_seconds=LEASE_SECONDS,
        grace_seconds=GRACE_SECONDS,
        poll_seconds=POLL_SECONDS,
    )
    return Distant(stack.enter_context(worker), proxy)


@pytest.fixture(autouse=True)
def nobody_is_started_again(workers: list[Distant]) -> Iterator[None]:
    """Whatever a test does, both workers live through it."""
    yield
    assert [distant.worker.process.poll() for distant in workers] == [None, None]
