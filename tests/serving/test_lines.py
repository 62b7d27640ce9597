"""Lines that are not taught yet, or come and go while the service runs."""

from __future__ import annotations

from typing import Any

from tests.serving.conftest import picture

from flawsmith.line.settings import LineSettings


def test_line_that_is_not_taught_yet_takes_no_parts_and_keeps_no_other_back(new_service: Any) -> None:
    running = new_service()
    running.service.site.add_line("nut", LineSettings())

    refused = running.judge(picture(20), line="nut")

    assert (refused.status, refused.headers["retry-after"]) == (503, "10")
    assert [line["ready"] for line in running.call("GET", "/v1/lines").json] == [True, False]
    assert running.call("GET", "/v1/lines/nut/limit").status == 409
    assert running.call("GET", "/readyz").status == running.call("GET", "/v2/health/ready").status == 200
    assert running.call("GET", "/v2/models/nut/ready").status == 503
    index = running.call("POST", "/v2/repository/index").json
    assert [(line["state"], line["reason"]) for line in index] == [("READY", ""), ("UNAVAILABLE", "not taught yet")]
    assert 'line="nut",reason="no_model"} 1.0' in running.call("GET", "/metrics").body.decode()
    assert running.judge(picture(20)).status == 201


def test_line_whose_model_was_taken_away_makes_the_service_unready(new_service: Any) -> None:
    running = new_service()
    assert running.call("POST", "/v2/repository/models/bolt/unload").status == 200

    assert running.call("GET", "/readyz").status == running.call("GET", "/v2/health/ready").status == 503
    assert running.call("POST", "/v2/repository/models/bolt/load").status == 200
    assert running.call("GET", "/readyz").status == running.call("GET", "/v2/health/ready").status == 200


def test_metrics_forget_a_line_that_was_removed(new_service: Any) -> None:
    running = new_service()
    site = running.service.site
    site.add_line("nut", site.lines["bolt"].settings)
    assert 'flawsmith_limit{kind="reject",line="nut"}' in running.call("GET", "/metrics").body.decode()

    site.remove_line("nut")

    assert 'flawsmith_limit{kind="reject",line="nut"}' not in running.call("GET", "/metrics").body.decode()
    assert running.call("GET", "/v1/lines/nut").status == 404
