"""What /docs serves: everything from here, nothing inline, nothing secret; and a place for each problem."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import pytest

from flowledger.api.catalog import catalog
from tests.api.serving import Served, served
from tests.docs.pages import ROOT, script
from tests.ledger.law import ALICE

PAGES = ("/docs", "/docs/problems")
CHROMIUM = shutil.which("chromium")


class Page(HTMLParser):
    """Where a page leads, what it fetches, what it would run or paint by itself, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.inline: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given["id"] or ""} if "id" in given else set()
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        self.links += [given["href"] or ""] if tag == "a" else []
        self.fetched += [given[name] or "" for name in ("src", "href") if name in given and tag != "a"]


def elsewhere(page: Page) -> list[str]:
    """What the page leads to or fetches from another host."""
    return [url for url in (*page.links, *page.fetched) if urlsplit(url).netloc]


@pytest.fixture(scope="module")
def server(postgres) -> Iterator[Served]:
    with served(postgres) as running:
        yield running


@pytest.fixture
def anybody(server):
    with server.as_() as client:
        yield client


@pytest.mark.parametrize("path", PAGES)
def test_a_page_fetches_and_leads_to_nothing_but_this_server(anybody, path):
    page = Page(anybody.get(path).text)
    assert elsewhere(page) == []
    assert len(page.fetched) >= 2
    for url in {*page.links, *page.fetched} - {"data:,"}:
        answer = anybody.get(urljoin(path, url).partition("#")[0])
        assert answer.status_code == 200, url


@pytest.mark.parametrize("path", PAGES)
def test_a_page_needs_nothing_that_a_strict_policy_forbids(anybody, path):
    answer = anybody.get(path)
    assert Page(answer.text).inline == []
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"


def test_what_a_page_fetches_is_kept_for_ever_under_the_name_of_its_content(anybody):
    scripts = [url for url in Page(anybody.get("/docs").text).fetched if url.endswith(".js")]
    assert len(scripts) == 2
    for url in scripts:
        answer = anybody.get(url)
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert anybody.get(url.replace(url.split("/")[3], "0" * 16)).status_code == 404


@pytest.mark.parametrize("name", ["vendor/vendor.toml", "docs.html", "../pages.py", "..%2fpages.py", "/etc/passwd", ""])
def test_nothing_else_is_served(anybody, name):
    version = Page(anybody.get("/docs").text).fetched[-1].split("/")[3]
    assert anybody.get(f"/docs/static/{version}/{name}").status_code == 404


def test_each_problem_has_its_place(anybody):
    page = Page(anybody.get("/docs/problems").text)
    assert {one.code for one in catalog()} <= page.anchors
    assert {link for link in page.links if link.startswith("#")} == {f"#{one.code}" for one in catalog()}


@pytest.mark.parametrize(
    "asked", ["/api/v1/executions", "/nothing", "/api/v1/executions?limit=0", "/api/v1/executions/none"]
)
def test_the_type_of_a_problem_leads_to_it(server, database, asked):
    with server.as_user(ALICE) as alice, server.as_() as anybody:
        for client in (alice, anybody):
            if (answer := client.get(asked)).is_error:
                place, _, anchor = answer.json()["type"].partition("#")
                assert anchor in Page(client.get(place).text).anchors


def test_the_pages_tell_nothing_of_the_ledger(anybody, database):
    """They are the same for everybody, and need no token."""
    texts = [anybody.get(path).text for path in (*PAGES, "/api/v1/openapi.json")]
    assert not any(secret in text for text in texts for secret in ("postgresql://", "password", str(database.data_dir)))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_every_operation_and_has_nothing_to_complain_of(server, tmp_path):
    shown = _browsed(f"{server.url}/docs", tmp_path)
    operations = json.loads((ROOT / "openapi.json").read_text())["paths"]
    assert all(path in re.sub(r"<[^>]*>|\u200b", "", shown) for path in operations)


def _browsed(url: str, place) -> str:
    """The page as it stands when its scripts have run. Fails for what the browser refuses to fetch, run or paint."""
    ran = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            *(f"--user-data-dir={place}", "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", url),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    complaints = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    return ran.stdout


# -- What is not ours -------------------------------------------------------------------------------------------------


def test_what_is_not_ours_is_what_it_says_it_is():
    assert script("vendor").differences() == []


def test_the_wheel_carries_the_pages(tmp_path):
    spec = importlib.util.find_spec("hatchling")
    assert spec is not None
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    below = "flowledger/api/static"
    assert {f"{below}/{name}" for name in ("docs.html", "problems.html", "docs.css", "docs.js")} <= names
    assert {f"{below}/vendor/{name}" for name in ("swagger-ui-bundle.js", "LICENSES/swagger-ui.txt")} <= names
    assert any(name.endswith("licenses/src/flowledger/api/static/vendor/LICENSES/swagger-ui.txt") for name in names)


class TestTheCheckersFindWhatTheyShould:
    def test_another_host_and_what_is_inline(self):
        page = Page('<script>1</script><p style="x" onclick="y"><img src="https://x.example/a"><a href="//x.example">')
        assert page.inline == ["script", "style", "onclick"]
        assert elsewhere(page) == ["//x.example", "https://x.example/a"]

    def test_a_changed_file(self, monkeypatch, tmp_path):
        vendor = script("vendor")
        shutil.copytree(vendor.VENDOR, tmp_path / "vendor")
        monkeypatch.setattr(vendor, "VENDOR", tmp_path / "vendor")
        (tmp_path / "vendor/swagger-ui.css").write_text("")
        (tmp_path / "vendor/more.js").write_text("")
        assert [line.partition(":")[0] for line in vendor.differences()] == ["more.js", "swagger-ui.css"]
