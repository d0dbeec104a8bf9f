"""The login of the local default: a one-time link, printed where flowledger was started, becomes a cookie."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from flowledger.api.hosts import require_same_origin
from flowledger.database.session import Claims
from flowledger.domain.token import Secret
from flowledger.errors import NotAuthenticated
from flowledger.ledger import logins

router = APIRouter(include_in_schema=False)

_HOME = "/docs"


@router.get("/login")
async def log_in(request: Request, link: Annotated[str, Query(max_length=200)]) -> Response:
    """Opens a session and goes on to the first page."""
    rates = request.app.state.rates
    await rates.admit(request)
    async with request.app.state.database.session(Claims.of_nobody()) as session:
        opened = await logins.redeem(session, Secret(link))
    if opened is None:
        told = "this link was opened before, or is too old; `flowledger login` prints another"
        raise await rates.failed(request, NotAuthenticated(told))
    return _with_cookie(request, opened)


@router.delete("/login", status_code=204)
async def log_out(request: Request) -> Response:
    """Ends the session."""
    require_same_origin(request)
    if (known := session_of(request)) is not None:
        async with request.app.state.database.session(Claims.of_nobody()) as session:
            await logins.end_session(session, known)
    answer = Response(status_code=204)
    answer.delete_cookie(_cookie(request), httponly=True, samesite="strict")
    return answer


def session_of(request: Request) -> Secret | None:
    """What the browser's cookie says, where logins are taken."""
    if not request.app.state.has_login:
        return None
    given = request.cookies.get(_cookie(request))
    return Secret(given) if given else None


def _with_cookie(request: Request, session: Secret) -> Response:
    answer = RedirectResponse(_HOME, status_code=303)
    answer.set_cookie(
        _cookie(request),
        session.text,
        max_age=logins.SESSION_DAYS * 86_400,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


def _cookie(request: Request) -> str:
    """Cookies know no ports: servers of two projects on one machine would take each other's away."""
    return f"flowledger_{request.url.port or 80}"
