"""The frame of the studio: who gets in, what is served how, and that it looks like the reports."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flawsmith.report.style import EDGE, GOOD, INK, MUTED
from flawsmith.serving.studio import PAGES

STATIC = Path("src/flawsmith/serving/studio/static")
TOKENS = [
    {"name": "anna", "role": "engineer", "token": "an engineer's token"},
    {"name": "otto", "role": "operator", "token": "an operator's token"},
]


@pytest.fixture(scope="module")
def guarded(new_service: Callable[..., Any]) -> Any:
    """A service that asks for tokens."""
    return new_service(tokens=TOKENS)


def sign_in(running: Any, token: str, *, to: str = "/studio/lines/bolt/limit", **headers: str) -> Any:
    body = f"token={token.replace(' ', '+')}&to={to}"
    return running.call("POST", "/studio/sign-in", body, Content_Type="application/x-www-form-urlencoded", **headers)


def cookie_of(answer: Any) -> str:
    return answer.headers["set-cookie"].partition(";")[0]


def test_first_address_leads_to_the_pages(running: Any) -> None:
    answer = running.call("GET", "/")

    assert (answer.status, answer.headers["location"]) == (303, "/studio/")
    assert b'data-testid="lines.list"' in running.call("GET", "/studio/").body


@pytest.mark.parametrize("name", [page.name for page in PAGES if page.name not in ("teach", "train")])
def test_every_page_of_a_line_comes_with_its_module_and_a_policy_without_inline_code(running: Any, name: str) -> None:
    answer = running.call("GET", f"/studio/lines/bolt/{name}")
    text = answer.body.decode()
    modules = re.findall(r'<script type="module" src="([^"]+)"></script>', text)

    assert answer.status == 200
    assert [running.call("GET", module).status for module in modules] == [200, 200]
    assert f'data-testid="nav.{name}" aria-current="page"' in text
    assert "script-src 'self'; style-src 'self'" in answer.headers["content-security-policy"]
    assert text.count("<script") == len(modules)
    assert "style=" not in text
    assert "://" not in re.sub(r"<noscript>.*?</noscript>", "", text, flags=re.DOTALL)


def test_files_are_asked_for_once_and_have_their_types(running: Any) -> None:
    text = running.call("GET", "/studio/").body.decode()
    script, style = (re.search(pattern, text)[1] for pattern in (r'src="([^"]+shell\.js)"', r'href="([^"]+\.css)"'))

    answers = [running.call("GET", address) for address in (script, style)]

    assert [answer.headers["content-type"] for answer in answers] == [
        "text/javascript; charset=utf-8",
        "text/css; charset=utf-8",
    ]
    assert all("immutable" in answer.headers["cache-control"] for answer in answers)
    assert running.call("GET", re.sub(r"static/\w+/", "static/0000000000000000/", script)).status == 404


@pytest.mark.parametrize(
    "name", ["../pages.py", "..%2fpages.py", "%2e%2e/pages.py", "vendor", "", "templates/base.html"]
)
def test_nothing_but_the_files_of_pages_is_served(running: Any, name: str) -> None:
    digest = re.search(r"/studio/static/(\w+)/", running.call("GET", "/studio/").body.decode())[1]

    assert running.call("GET", f"/studio/static/{digest}/{name}").status == 404


def test_unknown_lines_and_pages_are_refused_as_a_page(running: Any) -> None:
    for path in ("/studio/lines/nut/run", "/studio/lines/bolt/rum", "/studio/nothing"):
        answer = running.call("GET", path)

        assert answer.status == 404
        assert b'data-testid="problem"' in answer.body


def test_whoever_has_no_token_sees_no_line_and_signs_in_first(guarded: Any) -> None:
    answer = guarded.call("GET", "/studio/lines/bolt/limit")
    page = guarded.call("GET", "/studio/sign-in")

    assert (answer.status, answer.headers["location"]) == (303, "/studio/sign-in?to=/studio/lines/bolt/limit")
    assert guarded.call("GET", "/studio/lines/nut/limit").status == 303
    assert b"bolt" not in guarded.call("GET", "/studio/lines/nut").body
    assert b"bolt" not in page.body
    assert guarded.call("GET", "/v1/lines", Cookie="flawsmith_token_8470=bm90IGEgdG9rZW4=").status == 401
    assert guarded.call("GET", "/v1/lines", Cookie="flawsmith_token_8470=%%%").status == 401


def test_a_token_in_a_cookie_has_the_role_of_the_token_and_no_script_reads_it(guarded: Any) -> None:
    answer = sign_in(guarded, "an operator's token")
    cookie = cookie_of(answer)
    order = {"max_false_rejects": 0.2, "reason": "as agreed"}

    assert (answer.status, answer.headers["location"]) == (303, "/studio/lines/bolt/limit")
    assert {"httponly", "samesite=strict"} <= set(answer.headers["set-cookie"].lower().split("; "))
    assert guarded.call("GET", "/v1/lines", Cookie=cookie).status == 200
    assert guarded.call("PUT", "/v1/lines/bolt/limit", order, Cookie=cookie).status == 403
    assert b"otto" in guarded.call("GET", "/studio/lines/bolt/limit", Cookie=cookie).body


def test_a_cookie_is_sent_over_tls_alone_where_the_page_came_so(guarded: Any) -> None:
    host = f"localhost:{guarded.port}"

    answer = sign_in(guarded, "an engineer's token", Origin=f"https://{host}", Host=host)

    assert "secure" in answer.headers["set-cookie"].lower().split("; ")


def test_pages_from_elsewhere_can_use_no_session(guarded: Any) -> None:
    cookie = cookie_of(sign_in(guarded, "an engineer's token"))
    order = {"max_false_rejects": 0.2, "reason": "not asked for"}

    answer = guarded.call("PUT", "/v1/lines/bolt/limit", order, Cookie=cookie, Origin="http://localhost:1")

    assert answer.status == 403
    assert sign_in(guarded, "an engineer's token", Origin="http://evil.example").status == 403


@pytest.mark.parametrize(
    "to", ["//evil.example/", "https://evil.example/studio/", "/v1/lines", "/studio\\..", "//[", ""]
)
def test_signing_in_leads_nowhere_else(guarded: Any, to: str) -> None:
    assert sign_in(guarded, "an engineer's token", to=to).headers["location"] == "/studio/"


def test_a_wrong_token_is_refused_and_sets_nothing(guarded: Any) -> None:
    answer = sign_in(guarded, "no such token at all")

    assert answer.status == 401
    assert "set-cookie" not in answer.headers
    assert b'data-testid="signin.refused"' in answer.body


def test_signing_out_forgets_the_token(guarded: Any) -> None:
    answer = guarded.call("POST", "/studio/sign-out")

    assert "max-age=0" in answer.headers["set-cookie"].lower()


def test_a_service_without_studio_has_no_pages(new_service: Callable[..., Any]) -> None:
    running = new_service(studio=False)

    assert [running.call("GET", path).status for path in ("/", "/studio/", "/v1/lines")] == [404, 404, 200]


def test_colours_are_those_of_the_reports() -> None:
    style = (STATIC / "studio.css").read_text(encoding="utf-8")
    report = Path("src/flawsmith/report/page.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"--([a-z-]+): ([^;]+);", style[: style.index("@media")]))

    assert (light["ink"], light["muted"], light["edge"], light["accent"]) == (INK, MUTED, EDGE, GOOD)
    for name in ("line", "soft", "right", "wrong"):
        assert f"--{name}: {light[name]};" in report


def test_vendored_files_are_those_of_their_packages() -> None:
    vendor = STATIC / "vendor"
    text = (vendor / "README.txt").read_text(encoding="utf-8")
    blocks = re.findall(r"^(\S+\.js) .*?(?:file|\1): sha256 (\w{64})", text, re.MULTILINE | re.DOTALL)
    named = {**dict(blocks), **dict(re.findall(r"(\S+\.css): sha256 (\w{64})", text))}

    assert set(named) == {"lit-html.js", "uPlot.js", "uPlot.css"}
    for name, digest in named.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest
        assert (vendor / f"{name.partition('.')[0]}.LICENSE.txt").is_file()


def test_both_dark_looks_are_the_same() -> None:
    style = (STATIC / "studio.css").read_text(encoding="utf-8")
    by_system = re.search(r':root:not\(\[data-theme="light"\]\) \{(.*?)\}', style, re.DOTALL)[1]
    by_choice = re.search(r':root\[data-theme="dark"\] \{(.*?)\}', style, re.DOTALL)[1]

    assert by_system.split() == by_choice.split()
