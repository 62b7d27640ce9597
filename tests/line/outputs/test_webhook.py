"""Webhooks: signed as a public library expects it, never led elsewhere, never held up."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.line.outputs.conftest import SECONDS, SECRET, Receiver, judge, until

from flawsmith.line.station import Site
from flawsmith.runtime.errors import FlawsmithError

NewSite = Callable[..., Site]


def facts(site: Site) -> Any:
    (output,) = site.lines["bolt"].outputs.facts()
    return output


def test_delivery_holds_the_record_and_a_signature_of_each_attempt(new_site: NewSite, receiver: Receiver) -> None:
    receiver.answer = lambda number: 503 if number == 1 else 201
    site = new_site(outputs=[receiver.webhook()], site="plant 1")

    record = judge(site, 250, part_id="A-1", lot_id="L7")
    (delivery,) = until(lambda: receiver.taken)

    ((stored, chained),) = site.store.after("bolt", 0, count=10)
    assert (delivery["type"], delivery["timestamp"]) == ("inspection.recorded", record.received)
    assert delivery["data"] == {"schema": 1, "delivery": chained, **json.loads(stored.model_dump_json())}
    assert delivery["data"]["verdict"] == "reject"
    assert receiver.ids == [chained]
    assert receiver.requests == 2
    assert receiver.headers["user-agent"].startswith("flawsmith/")


def test_receiver_that_is_gone_is_asked_no_more(new_site: NewSite, receiver: Receiver) -> None:
    receiver.answer = lambda _: 410
    site = new_site(outputs=[receiver.webhook()])

    judge(site)
    until(lambda: facts(site).state == "stopped")
    records = [judge(site) for _ in range(3)]
    site.close()

    assert receiver.requests == 1
    assert [record.verdict for record in records] == ["pass"] * 3
    receiver.answer = lambda _: 200
    again = new_site(outputs=[receiver.webhook()])
    until(lambda: facts(again).behind == 0)
    assert len(receiver.taken) == 4


def test_redirect_is_not_followed(new_site: NewSite, new_receiver: Callable[..., Receiver]) -> None:
    receiver, elsewhere = new_receiver(), new_receiver()
    receiver.elsewhere = elsewhere.url
    receiver.answer = lambda _: 302
    site = new_site(outputs=[receiver.webhook()])

    judge(site)
    until(lambda: facts(site).failures > 2)

    assert elsewhere.requests == 0
    assert "answers 302, a redirect, which is not followed: correct the url" in facts(site).last_error


def test_secrets_are_shown_nowhere(new_site: NewSite, receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")  # forgets what libraries that silence all loggers have left behind
    receiver.answer = lambda _: 400
    site = new_site(outputs=[receiver.webhook()])

    judge(site)
    until(lambda: facts(site).failures > 2)

    shown = facts(site).model_dump_json() + caplog.text + repr(site.settings.lines["bolt"].outputs[0].secret)
    assert facts(site).target == f"http://127.0.0.1:{receiver.port}"
    assert "answers 400 to record 1" in facts(site).last_error
    assert "PATHSECRET" not in shown
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("begin", "is_delivered"),
    [(b"HTTP/1.1 200 OK\r\nX-Long: ", False), (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", True)],
)
def test_answer_that_comes_byte_by_byte_is_cut_off(
    begin: bytes, is_delivered: bool, new_site: NewSite, receiver: Receiver
) -> None:
    listener, cut_off, taken = socket.create_server(("127.0.0.1", 0)), threading.Event(), []

    def drip() -> None:
        connection, _ = listener.accept()  # the first alone: to others nobody answers
        with connection:
            taken.append(connection.recv(65536))
            try:
                connection.sendall(begin)
                while True:
                    time.sleep(0.02)
                    connection.sendall(b"x")
            except OSError:
                cut_off.set()

    threading.Thread(target=drip, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    site = new_site(outputs=[receiver.webhook(url=url, seconds=0.2)])

    judge(site)
    assert cut_off.wait(SECONDS)
    fact = until(lambda: (fact := facts(site)).delivered + fact.failures and fact)

    assert bool(fact.delivered) is is_delivered
    assert is_delivered or fact.last_error == f"{url} gave no answer within 0.2 s"
    site.close()
    listener.close()


def test_certificate_is_checked(new_site: NewSite, new_receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    authority, trust = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(trust)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    receiver = new_receiver(trust=trust)

    site = new_site(outputs=[receiver.webhook()])
    judge(site, part_id="A-1")
    error = until(lambda: facts(site).last_error)
    assert receiver.requests == 0
    assert "certificate verify failed" in error
    site.close()
    site = new_site(outputs=[receiver.webhook(ca_file=tmp_path / "ca.pem")])

    until(lambda: receiver.parts == ["A-1"])
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(FlawsmithError, match=r"ca\.pem: cannot be used as ca_file \(it holds no certificate in PEM\)"):
        new_site(outputs=[receiver.webhook(ca_file=tmp_path / "ca.pem")])


def test_answer_whose_body_ends_early_spoils_no_other_delivery(new_site: NewSite, receiver: Receiver) -> None:
    listener, taken, go_on = socket.create_server(("127.0.0.1", 0)), [], threading.Event()

    def answer_in_part() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                taken.append(connection.recv(65536))
                assert go_on.wait(SECONDS)  # so that the others come together
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

    threading.Thread(target=answer_in_part, daemon=True).start()
    site = new_site(outputs=[receiver.webhook(url=f"http://127.0.0.1:{listener.getsockname()[1]}")])

    for _ in range(3):
        judge(site)
    go_on.set()
    fact = until(lambda: (fact := facts(site)).delivered == 3 and fact)

    assert (fact.failures, len(taken)) == (0, 3)
