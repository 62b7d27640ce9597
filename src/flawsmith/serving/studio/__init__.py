"""Pages of the studio. They are clients of ``/v1`` as any other program: a page here is a frame, its module fills it.

To add a page to a line: an entry in `PAGES`, and a module ``static/pages/NAME.js``, which fills the frame that
``templates/line.html`` gives it. Nothing is built; what stands in ``static/`` is served under an address that changes
with its content.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, FastAPI, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flawsmith import __version__
from flawsmith.serving.requests import TITLES, Caller, Problem, caller_of, session_cookie
from flawsmith.serving.service import Service

_HERE = Path(__file__).parent
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_THEME_COOKIE = "flawsmith_theme"
_YEAR = 365 * 86400
_MOST_ADDRESS = 500


def _always(service: Service) -> bool:
    return True


@dataclass(frozen=True)
class Page:
    """A page of a line.

    Attributes:
        name: in its address, and of its module.
        title: in the navigation.
        styles: files beside that of all pages.
        is_offered: whether this service has it.
    """

    name: str
    title: str
    styles: tuple[str, ...] = ()
    is_offered: Callable[[Service], bool] = field(default=_always, repr=False)


def _teaches(service: Service) -> bool:
    return service.workspace is not None


PAGES: tuple[Page, ...] = (
    Page("teach", "Teach", ("teach.css",), _teaches),
    Page("train", "Train", ("teach.css",), _teaches),
    Page("limit", "Limit"),
    Page("try", "Try"),
    Page("run", "Run", ("vendor/uPlot.css",)),
    Page("review", "Review"),
    Page("models", "Models"),
    Page("accept", "Accept"),
)
"""Pages of a line in the order of the work."""


class StaticFiles:
    """Files of the pages in memory, under an address that names their content, so that a browser asks once.

    Args:
        folder: all files below it whose kind is known are served, nothing else.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.suffix in _TYPES)
        self.content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        digest = hashlib.sha256()
        for name, content in self.content.items():
            digest.update(f"{name}\n{len(content)}\n".encode() + content)
        self.digest = digest.hexdigest()[:16]

    def address(self, name: str) -> str:
        """Where a file is; modules name each other by relative paths.

        Raises:
            KeyError: there is none.
        """
        if name not in self.content:
            raise KeyError(f"static/{name}")
        return f"/studio/static/{self.digest}/{name}"

    def response(self, digest: str, name: str) -> Response:
        """A file.

        Raises:
            Problem: there is none, or its content was another one then.
        """
        if name not in self.content or digest != self.digest:
            raise Problem(404, "there is no such file")
        headers = {
            "Cache-Control": f"public, max-age={_YEAR}, immutable",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        return Response(self.content[name], media_type=_TYPES[Path(name).suffix], headers=headers)


class Studio:
    """Pages of a service.

    Args:
        service: whose lines they show.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.static = StaticFiles(_HERE / "static")
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(static=self.static.address, version=__version__)

    @property
    def pages(self) -> list[Page]:
        """Those of a line that this service has."""
        return [page for page in PAGES if page.is_offered(self.service)]

    def page(
        self, request: Request, template: str, caller: Caller | None, *, status: int = 200, **facts: Any
    ) -> HTMLResponse:
        """A page.

        Args:
            request: that it answers.
            template: its file.
            caller: who looks; None: nobody signed in, so that nothing of the service is told.
            status: of HTTP.
            **facts: for the template.
        """
        theme = request.cookies.get(_THEME_COOKIE)
        known: Mapping[str, Any] = {
            "theme": theme if theme in ("light", "dark") else "",
            "caller": caller,
            "has_tokens": bool(self.service.settings.tokens),
            "lines": [] if caller is None else list(self.service.site.lines),
            "pages": self.pages,
            "makes_lines": self.service.workspace is not None and caller is not None and caller.role == "engineer",
            "line": None,
            "page": None,
        }
        text = self._templates.get_template(template).render({**known, **facts})
        headers = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "same-origin"}
        return HTMLResponse(text, status, headers)

    def caller(self, request: Request) -> Caller | None:
        """Who looks; None: a token is needed first."""
        try:
            return caller_of(request, self.service.settings)
        except Problem:
            return None

    def problem_page(self, request: Request, problem: Problem) -> Response:
        """A refusal as a page."""
        return self.page(
            request,
            "problem.html",
            self.caller(request),
            status=problem.status,
            title=TITLES.get(problem.status, "Error"),
            detail=problem.detail,
        )

    def shown(self, request: Request, template: str, **facts: Any) -> Response:
        """A page for who is signed in; others sign in first, and then come back."""
        caller = self.caller(request)
        if caller is None:
            return RedirectResponse(f"/studio/sign-in?to={quote(request.url.path)}", 303)
        return self.page(request, template, caller, **facts)


def _inside(address: str) -> str:
    """An address of the studio; anything else becomes its first page."""
    try:
        parts = urlsplit(address[:_MOST_ADDRESS])
    except ValueError:  # as of "//["
        return "/studio/"
    is_inside = not parts.scheme and not parts.netloc and parts.path.startswith("/studio/") and "\\" not in address
    return quote(parts.path) if is_inside else "/studio/"


def add_studio(app: FastAPI, service: Service) -> Studio:
    """Serve the studio at ``/studio`` beside the rest, and lead ``/`` there.

    Args:
        app: the application.
        service: whose lines the pages show.
    """
    studio = Studio(service)
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def root() -> RedirectResponse:
        return RedirectResponse("/studio/", 303)

    @router.get("/studio")
    @router.get("/studio/")
    def lines(request: Request) -> Response:
        return studio.shown(request, "lines.html", page="lines")

    @router.get("/studio/settings")
    def settings(request: Request) -> Response:
        return studio.shown(request, "settings.html", page="settings")

    @router.get("/studio/lines/{line}")
    def first_page(line: str) -> RedirectResponse:
        return RedirectResponse(f"/studio/lines/{quote(line)}/run", 303)

    @router.get("/studio/lines/{line}/{name}")
    def line_page(line: str, name: str, request: Request) -> Response:
        page = next((page for page in studio.pages if page.name == name), None)
        if page is None:
            raise Problem(404, "there is no such page")
        if studio.caller(request) is not None:  # what lines there are is told to who is signed in
            service.line(line)
        return studio.shown(request, "line.html", page=page.name, title=page.title, styles=page.styles, line=line)

    @router.get("/studio/sign-in")
    def sign_in_page(request: Request, to: str = "/studio/") -> Response:
        if studio.caller(request) is not None:
            return RedirectResponse(_inside(to), 303)
        return studio.page(request, "sign_in.html", None, to=_inside(to), is_refused=False)

    @router.post("/studio/sign-in")
    def sign_in(
        request: Request, token: Annotated[str, Form(max_length=200)] = "", to: Annotated[str, Form()] = ""
    ) -> Response:
        matching = [known for known in service.settings.tokens if known.matches(token.strip())]  # all are compared
        if not matching:
            return studio.page(request, "sign_in.html", None, status=401, to=_inside(to), is_refused=True)
        answer = RedirectResponse(_inside(to), 303)
        answer.set_cookie(
            session_cookie(service.settings),
            base64.urlsafe_b64encode(token.strip().encode()).decode(),
            httponly=True,
            samesite="strict",
            secure=request.headers.get("origin", "").startswith("https:"),
        )
        return answer

    @router.post("/studio/sign-out")
    def sign_out() -> Response:
        answer = RedirectResponse("/studio/sign-in", 303)
        answer.delete_cookie(session_cookie(service.settings), httponly=True, samesite="strict")
        return answer

    @router.get("/studio/static/{digest}/{name:path}")
    def static_file(digest: str, name: str) -> Response:
        return studio.static.response(digest, name)

    @router.get("/favicon.ico")
    def icon() -> Response:
        return studio.static.response(studio.static.digest, "icon.svg")

    app.include_router(router)
    return studio
