"""`/docs`: the document to read and to try, and what each problem means. All of it is served from here.

Whoever reaches the server may read it: it tells of the software, which is no secret, and of nobody's work. What is
tried on the page is asked with the reader's own token, or login.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from html import escape
from importlib.resources import files
from string import Template

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.exceptions import HTTPException

from flowledger.api.catalog import Told, catalog

router = APIRouter(prefix="/docs", include_in_schema=False)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_STATIC = files("flowledger.api") / "static"
_TYPES = {
    "docs.css": "text/css",
    "docs.js": "text/javascript",
    "vendor/swagger-ui.css": "text/css",
    "vendor/swagger-ui-bundle.js": "text/javascript",
}


@router.get("")
async def docs() -> Response:
    """The document in a viewer."""
    return _page("docs.html")


@router.get("/problems")
async def problems() -> Response:
    """Each problem's `type` leads here."""
    told = catalog()
    return _page("problems.html", codes="\n".join(map(_code, told)), problems="\n".join(map(_section, told)))


@router.get("/static/{version}/{name:path}")
async def static(version: str, name: str) -> Response:
    """Under the name of its content, and so for ever."""
    if name not in _TYPES or version != _version():
        raise HTTPException(404)
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return FileResponse(str(_STATIC / name), headers=headers, media_type=_TYPES[name])


@cache
def _version() -> str:
    digest = hashlib.sha256()
    for name in _TYPES:
        digest.update((_STATIC / name).read_bytes())
    return digest.hexdigest()[:16]


def _page(name: str, **parts: str) -> Response:
    text = Template((_STATIC / name).read_text()).substitute(parts, static=f"/docs/static/{_version()}")
    return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})


def _code(told: Told) -> str:
    return f'<a href="#{told.code}">{told.code}</a>'


def _section(told: Told) -> str:
    remedy = f'<p class="remedy">{escape(told.remedy)}</p>' if told.remedy else ""
    return f"""<section class="problem" id="{told.code}">
<h2><a href="#{told.code}">{told.code}</a> <span class="status">{told.status}</span></h2>
<p>{_prose(told.meaning)}</p>
<blockquote><p>{escape(told.title)}</p>{remedy}</blockquote>
</section>"""


def _prose(text: str) -> str:
    """Escaped; what stands in backquotes is code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))
