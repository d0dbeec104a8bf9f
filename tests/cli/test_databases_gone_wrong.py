"""A database that is down, empty, newer, or somebody else's: each is told apart, with exit 1 and a remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.migrate import migrate, migrations
from tests.acceptance.product import PROJECT, Product
from tests.bare_postgres import BareServer, installed

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareServer]:
    major, binaries = list(installed().items())[-1]
    server = BareServer(major, binaries, tmp_path_factory.mktemp("bare"))
    server.start()
    server.execute("create database empty", "create database newer", "create database other", "create database ours")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def product(postgres: EmbeddedPostgres) -> Product:
    return Product(postgres, PROJECT, uuid4())


def _error(product: Product, *arguments: object, url: str) -> dict[str, str]:
    done = product.call(*arguments, "--json", database_url=url)
    assert done.returncode == 1, done
    assert done.stdout == ""
    error: dict[str, str] = json.loads(done.stderr)["error"]
    return error


@pytest.mark.parametrize("arguments", [("executions", "list"), ("db", "check"), ("db", "migrate"), ("run", "good")])
def test_database_that_is_down_is_told_with_its_address_and_without_its_password(
    product: Product, arguments: tuple[str, ...]
) -> None:
    error = _error(product, *arguments, url="postgresql://ada:hunter22@127.0.0.1:1/ledger")
    assert error["code"] == "database_unreachable"
    assert "127.0.0.1:1/ledger" in error["message"]
    assert "hunter22" not in str(error)


@pytest.mark.parametrize("arguments", [("executions", "list"), ("db", "check"), ("run", "good")])
def test_database_without_the_schema_says_how_to_get_it(
    product: Product, server: BareServer, arguments: tuple[str, ...]
) -> None:
    error = _error(product, *arguments, url=server.conninfo(dbname="empty"))
    assert error["code"] == "schema_too_old"
    assert "holds no flowledger schema" in error["message"]
    assert "db migrate" in error["hint"]


def test_worker_refuses_a_database_without_the_schema(product: Product, server: BareServer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with product.worker(log=log, ready=False, database_url=server.conninfo(dbname="empty")) as worker:
        assert worker.wait() == 1
    assert "holds no flowledger schema" in log.read_text()


def test_newer_schema_asks_for_a_newer_flowledger(product: Product, server: BareServer) -> None:
    url = server.conninfo(dbname="newer")
    migrate(url)
    assert product.call("executions", "list", database_url=url).returncode == 0
    server.execute("insert into flowledger.schema_migrations (version, name) values (9999, 'later')", dbname="newer")
    for arguments in (("executions", "list"), ("db", "migrate")):
        error = _error(product, *arguments, url=url)
        assert error["code"] == "schema_too_new"
        assert "Upgrade" in error["hint"]


def test_database_of_somebody_else_is_left_as_it_is(product: Product, server: BareServer) -> None:
    url = server.conninfo(dbname="other")
    server.execute("create table public.crewai_flow_executions (id int)", dbname="other")
    error = _error(product, "db", "migrate", url=url)
    assert error["code"] == "schema_not_ours"
    assert _error(product, "executions", "list", url=url)["code"] == "schema_too_old"


def test_address_that_is_none_is_a_usage_error(product: Product) -> None:
    done = product.call("executions", "list", "--json", database_url="postgresql://[half")
    assert (done.returncode, json.loads(done.stderr)["error"]["code"]) == (2, "invalid_input")


def test_migrate_check_and_reference_work_on_a_named_database(product: Product, server: BareServer) -> None:
    url = server.conninfo(dbname="ours")
    applied = json.loads(product.call("db", "migrate", "--json", database_url=url).stdout)
    assert applied == [migration.file_name for migration in migrations()]
    assert json.loads(product.call("db", "migrate", "--json", database_url=url).stdout) == []
    assert product.call("db", "check", database_url=url).returncode == 0
    document = product.call("db", "reference", "--application", "Shop", database_url=url).stdout
    assert "crewai_flow_executions" in document
    assert "Shop" in document
    assert product.call("db", "url", database_url=url).stdout.strip() == url
    assert product.call("db", "url", "--role", "king", database_url=url).returncode == 2
    server.execute("grant delete on public.crewai_flow_executions to authenticated", dbname="ours")
    done = product.call("db", "check", "--json", database_url=url)
    assert done.returncode == 1
    assert "authenticated" in done.stdout


def test_unknown_table_has_no_reference(product: Product, server: BareServer) -> None:
    done = product.call("db", "reference", "nothing", database_url=server.conninfo(dbname="ours"))
    assert done.returncode in (1, 2, 5)
    assert "fault of flowledger's" not in done.stderr


def test_export_writes_the_migrations_for_supabase(product: Product, tmp_path: Path) -> None:
    done = product.call("db", "export", "--supabase", "--directory", tmp_path / "migrations")
    assert done.returncode == 0, done.stderr
    assert all(Path(line).exists() for line in done.stdout.splitlines())
    assert product.call("db", "export").returncode == 2


def test_header_file_that_is_wrong_is_told(product: Product, server: BareServer, tmp_path: Path) -> None:
    header = tmp_path / "header.toml"
    header.write_text('owner = "me"')
    done = product.call("db", "reference", "--header", header, database_url=server.conninfo(dbname="ours"))
    assert done.returncode == 2
    assert "owner" in done.stderr
