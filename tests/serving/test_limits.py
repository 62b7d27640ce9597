"""Limits over HTTP: previewed, changed with a reason, audited, kept; and who may do so."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.serving.conftest import GOOD_SCORES, picture

from flawsmith.line.settings import ServiceSettings
from flawsmith.runtime.errors import FlawsmithError

LIMIT = "/v1/lines/bolt/limit"
TOKENS = [
    {"name": "camera", "role": "operator", "token": "operator-0123456789"},
    {"name": "anna", "role": "engineer", "token": "engineer-0123456789"},
]
OPERATOR, ENGINEER = (token["token"] for token in TOKENS)


def test_change_of_limits_is_previewed_made_and_audited(running: Any) -> None:
    for number, brightness in enumerate((20, 145, 150)):  # scores 0.08, 0.57 and 0.59
        running.judge(picture(brightness), f"P-{number}")
    before = running.call("GET", LIMIT).json
    change = {"max_false_rejects": "4/20"}

    preview = running.call("POST", f"{LIMIT}/preview", change).json
    unchanged = running.call("GET", LIMIT).json
    made = running.call("PUT", LIMIT, {**change, "reason": "too many flaws pass", "expected": before["limits"]})

    assert unchanged == before == preview["before"]
    assert preview["after"]["limit"] == pytest.approx(GOOD_SCORES[-4])
    assert preview["after"]["rejected_of_1000"] == pytest.approx(200)
    assert preview["good_after"] == {"pass": 16, "reject": 3}
    assert (preview["recent"], preview["changes"]) == (3, {"review -> reject": 2})
    assert made.status == 200
    assert running.call("GET", LIMIT).json == preview["after"]
    assert running.judge(picture(145), "P-9").json["limits"] == preview["after"]["limits"] != before["limits"]
    entry = running.call("GET", "/v1/audit?kind=limit").json["items"][0]
    assert (entry["who"], entry["line"], entry["facts"]["reason"]) == ("local", "bolt", "too many flaws pass")
    assert entry["facts"]["effect"]["changes"] == {"review -> reject": 2}
    # Pictures of earlier parts are drawn by the limits that judged them.
    old = running.call("GET", "/v1/lines/bolt/inspections?part_id=P-2").json["items"][0]
    assert running.call("GET", f"/v1/lines/bolt/inspections/{old['id']}/overlay").status == 200


def test_limits_outlive_the_service_and_can_be_taken_back(new_service: Any) -> None:
    first = new_service()
    before = first.call("GET", LIMIT).json
    after = first.call("PUT", LIMIT, {"max_false_rejects": 0.3, "reason": "a trial"}).json["after"]
    first.stop()

    second = new_service(records=first.service.settings.records)
    kept = second.call("GET", LIMIT).json
    back = second.call("PUT", LIMIT, {"use": before["limits"], "reason": "trial is over"}).json

    assert kept == after
    assert back["after"] == before
    assert second.service.site.store.verify().faults == ()


@pytest.mark.parametrize(
    ("order", "status", "reason"),
    [
        ({"max_false_rejects": "1/10"}, 422, "reason"),
        ({"max_false_rejects": "1/10", "reason": ""}, 422, "reason"),
        ({"reason": "no change"}, 422, "nothing is asked for"),
        ({"max_false_rejects": 7, "reason": "a typing error"}, 422, "max-false-rejects"),
        ({"use": "0123456789ab", "reason": "unknown limits"}, 422, "no limits 0123456789ab"),
        ({"max_false_rejects": "1/10", "reason": "a race", "expected": "0123456789ab"}, 409, "look at them first"),
        ({"limit": 3, "reason": "by hand"}, 422, "limit"),
    ],
)
def test_limits_that_cannot_be_set_change_nothing(running: Any, order: Any, status: int, reason: str) -> None:
    before, entries = running.call("GET", LIMIT).json, running.call("GET", "/v1/audit").json["items"]

    answer = running.call("PUT", LIMIT, order)

    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert reason in answer.json["detail"]
    assert running.call("GET", LIMIT).json == before
    assert running.call("GET", "/v1/audit").json["items"] == entries


def test_reviews_are_drawn_written_and_counted(new_service: Any) -> None:
    running = new_service(line={"audit_share": 1.0})
    numbers = [running.judge(picture(brightness), f"R-{brightness}").json["id"] for brightness in (20, 130, 250)]

    seen = []
    while (answer := running.call("GET", "/v1/lines/bolt/reviews/next")).status == 200:
        seen.append((answer.json["id"], answer.json["inclusion"]))
        order = {"label": "good", "comment": "dust"}
        assert running.call("POST", f"/v1/lines/bolt/reviews/{answer.json['id']}", order).status == 201

    assert (seen, answer.status) == ([(number, 1.0) for number in numbers], 204)
    reviews = running.call("GET", f"/v1/lines/bolt/reviews/{numbers[0]}").json
    assert (reviews[0]["who"], reviews[0]["facts"]["label"]) == ("local", "good")
    assert running.call("POST", f"/v1/lines/bolt/reviews/{numbers[0]}", {"label": "fine"}).status == 422
    assert 'flawsmith_reviews_total{label="good",line="bolt"} 3.0' in running.call("GET", "/metrics").body.decode()


@pytest.fixture(scope="module")
def guarded(new_service: Any) -> Any:
    """A service that asks for tokens."""
    return new_service(tokens=TOKENS)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/lines", None),
        ("POST", "/v1/lines/bolt/inspections", b"image"),
        ("GET", "/v1/lines/bolt/inspections", None),
        ("GET", "/v1/lines/bolt/inspections/1/image", None),
        ("PUT", LIMIT, {"max_false_rejects": "1/10", "reason": "none"}),
        ("POST", "/v1/lines/bolt/reviews/1", {"label": "good"}),
        ("POST", "/v1/lines/bolt/models", b"a model"),
        ("GET", "/v1/lines/bolt/models", None),
        ("GET", f"/v1/lines/bolt/models/{'0' * 64}/file", None),
        ("POST", f"/v1/lines/bolt/models/{'0' * 64}/activate", {"reason": "none"}),
        ("DELETE", f"/v1/lines/bolt/models/{'0' * 64}/shadow", None),
        ("POST", "/v1/lines/bolt/models/rollback", {"reason": "none"}),
        ("GET", "/v1/lines/bolt/drift", None),
        ("POST", "/v1/lines/bolt/trigger", None),
        ("GET", "/v1/lines/bolt/camera/picture", None),
        ("POST", "/v1/lines/bolt/camera/pause", {"paused": True, "reason": "cleaning"}),
        ("POST", "/v1/lines/bolt/drift/acknowledge", {"reason": "new lamp"}),
        ("GET", "/v1/audit", None),
        ("GET", "/v1/events", None),
        ("GET", "/metrics", None),
        ("GET", "/v2", None),
        ("GET", "/v2/models/bolt", None),
        ("POST", "/v2/models/bolt/infer", {}),
        ("POST", "/v2/repository/index", {}),
        ("POST", "/v2/repository/models/bolt/load", {}),
    ],
)
def test_nothing_is_said_or_done_without_a_token(guarded: Any, method: str, path: str, body: Any) -> None:
    entries = guarded.service.site.store.entries()
    for token in ("", "wrong-0123456789", OPERATOR[:-1], f"{ENGINEER}0"):
        answer = guarded.call(method, path, body, token=token)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert b"bolt" not in answer.body

    assert guarded.service.site.store.entries() == entries
    assert guarded.service.site.store.page("bolt") == []
    assert guarded.call("GET", "/healthz").status == guarded.call("GET", "/readyz").status == 200


def test_roles_part_operators_from_engineers(guarded: Any) -> None:
    order = {"max_false_rejects": 0.3, "reason": "a trial"}

    refused = guarded.call("PUT", LIMIT, order, token=OPERATOR)
    unloaded = guarded.call("POST", "/v2/repository/models/bolt/unload", token=OPERATOR)
    (version,) = guarded.call("GET", "/v1/lines/bolt/models", token=OPERATOR).json
    path = f"/v1/lines/bolt/models/{version['sha256']}"
    orders = [("POST", "/activate"), ("POST", "/shadow"), ("DELETE", "/shadow"), ("GET", "/file")]
    kept_back = [guarded.call(method, path + end, {"reason": "none"}, token=OPERATOR) for method, end in orders]
    kept_back.append(guarded.call("POST", "/v1/lines/bolt/models", b"a model", token=OPERATOR))
    made = guarded.call("PUT", LIMIT, order, token=ENGINEER)

    assert (refused.status, unloaded.status, made.status) == (403, 403, 200)
    assert [answer.status for answer in kept_back] == [403] * 5
    assert guarded.call("GET", LIMIT, token=OPERATOR).status == 200
    assert guarded.service.site.store.entries(kind="limit")[0].who == "anna"


def test_other_machines_are_let_in_with_tokens_alone(brightness_model: Any, tmp_path: Any) -> None:
    path = tmp_path / "LINES.toml"
    path.write_text(f'host = "0.0.0.0"\n[lines.bolt]\nmodel = "{brightness_model}"\n')
    with pytest.raises(FlawsmithError, match=r"add \[\[tokens\]\]"):
        ServiceSettings.load(path)
    with pytest.raises(FlawsmithError, match=r"add \[\[tokens\]\]"):
        ServiceSettings.load(brightness_model, host="192.0.2.1")

    path.write_text(path.read_text() + '[[tokens]]\nname = "a"\nrole = "operator"\ntoken = "0123456789abcdef"\n')

    assert ServiceSettings.load(path).host == "0.0.0.0"
    assert list(ServiceSettings.load(path, line="bolt").lines) == ["bolt"]
    with pytest.raises(FlawsmithError, match="holds no line nut: give --line bolt"):
        ServiceSettings.load(path, line="nut")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[lines.bolt]\nmodel = 'a.flaw'\nquee = 3", "lines.bolt.quee is not known here"),
        ("[lines.'../x']\nmodel = 'a.flaw'", "letters, digits"),
        ("lines = 3", "lines"),
        ("[lines", "is no TOML"),
        ("[[tokens]]\nname='a'\nrole='boss'\ntoken='0123456789abcdef'\n[lines.a]\nmodel='a'", "role"),
        ("[[tokens]]\nname='a'\nrole='operator'\ntoken='0123456789abcdef ä'\n[lines.a]\nmodel='a'", "printable ASCII"),
        (
            "".join(f"[[tokens]]\nname='{name}'\nrole='operator'\ntoken='0123456789abcdef'\n" for name in "ab")
            + "[lines.a]\nmodel='a'",
            "two tokens are the same",
        ),
        ("[lines.bolt]\nmodel = 'a.flaw'\ndevice = 'gpu'", "lines.bolt.device"),
    ],
)
def test_settings_that_are_wrong_are_named(tmp_path: Any, text: str, reason: str) -> None:
    (tmp_path / "LINES.toml").write_text(text)

    with pytest.raises(FlawsmithError, match=re.escape(reason)):
        ServiceSettings.load(tmp_path / "LINES.toml")


def test_drift_is_told_shown_measured_and_acknowledged(new_service: Any) -> None:
    running = new_service()
    told: list[Any] = []
    running.service.events.tell = lambda kind, content, number=None: told.append((kind, content))
    for number in range(70):
        running.judge(picture(60 + 13 * number % 35), f"N-{number}")  # scores as those of the good images
    calm = running.call("GET", "/v1/lines/bolt/drift").json
    for number in range(60):
        running.judge(picture(120 + number % 25), f"O-{number}")

    alarmed = running.call("GET", "/v1/lines/bolt/drift").json
    evidence = running.call("GET", "/metrics").body.decode()
    refused = running.call("POST", "/v1/lines/bolt/drift/acknowledge", {"reason": ""})
    done = running.call("POST", "/v1/lines/bolt/drift/acknowledge", {"reason": "new lamp"}).json

    assert (calm["state"], calm["parts"]) == ("calm", 70)
    assert (alarmed["state"], alarmed["alarm"]["direction"]) == ("alarm", "higher")
    assert abs(alarmed["alarm"]["since_record"] - 71) <= 8
    assert float(re.search(r'flawsmith_drift_evidence{line="bolt"} (\S+)', evidence)[1]) >= 1000  # type: ignore[index]
    assert (refused.status, done["state"], done["parts"], done["reference"]) == (422, "calm", 0, "line")
    assert [content.get("acknowledged", content.get("direction")) for kind, content in told if kind == "drift"] == [
        "higher",
        "new lamp",
    ]
    kinds = [entry["facts"]["event"] for entry in running.call("GET", "/v1/audit?kind=drift").json["items"]]
    assert kinds == ["begin", "alarm", "begin"]
