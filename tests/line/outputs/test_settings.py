"""What outputs may be set to: each mistake is one line that says how to correct it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import PROJECT
from tests.line.outputs.conftest import SECRET

from flawsmith.line.settings import ServiceSettings
from flawsmith.line.station import Site
from flawsmith.runtime.errors import FlawsmithError

WEBHOOK = f'kind = "webhook"\nurl = "https://mes/hook"\nsecret = "{SECRET}"\n'
PLACE = r"lines\.toml: lines\.bolt\.outputs\.0"
OUTPUT = "[[lines.bolt.outputs]]\n"
OPTIONAL = tuple(f"flawsmith.line.outputs.{name}" for name in ("modbus", "mqtt", "opcua"))


def load(folder: Path, text: str, line: str = "") -> ServiceSettings:
    path = folder / "lines.toml"
    path.write_text(f'[lines.bolt]\nmodel = "m.flaw"\n{line}\n{OUTPUT}{text}\n')
    return ServiceSettings.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'kind = "fax"',
            PLACE + r" has the 'kind' 'fax', and may have 'webhook', 'mqtt', 'csv', 'jsonl', 'modbus', 'opcua'",
        ),
        ("", PLACE + r" needs a 'kind'"),
        ('kind = "csv"', PLACE + r"\.csv\.folder is missing"),
        (WEBHOOK + "retries = 3", PLACE + r"\.webhook\.retries is not known here"),
        (WEBHOOK.replace("https", "ftp"), r"url of a webhook must be like https://"),
        (WEBHOOK.replace("mes/", "mes:x/"), r"url of a webhook must be like https://"),
        (WEBHOOK.replace("mes/", "a:b@mes/"), r"may hold no user name"),
        (WEBHOOK.replace("whsec_", ""), r"must be whsec_ and the base64 of 24 to 64 random bytes: `openssl rand"),
        (WEBHOOK.replace(SECRET, "whsec_c2hvcnQ="), r"must be whsec_ and the base64 of 24 to 64 random bytes"),
        (WEBHOOK + "verdicts = []", r"verdicts has 0 entries, and needs at least 1"),
        (WEBHOOK + 'verdicts = ["bad"]', r"verdicts\.0 must be 'pass', 'review', 'reject' or 'error'"),
        (WEBHOOK + 'name = "a/b"', r"output name 'a/b' may hold letters, digits, - and _"),
        (WEBHOOK + OUTPUT + WEBHOOK, r"two outputs are called webhook: give each a name of its own"),
        ('kind = "mqtt"\nhost = "b"\nca_file = "ca.pem"', r"ca_file needs tls = true"),
        ('kind = "mqtt"\nhost = "b"\npassword = "p"', r"a password needs a username"),
        ('kind = "modbus"\nport = 70000', r"modbus\.port must be at most 65535"),
        ('kind = "opcua"\nport = 70000', r"opcua\.port must be at most 65535"),
        ('kind = "opcua"\nhost = ""', r"opcua\.host must have a length of at least 1"),
        ('kind = "opcua"\nverdicts = ["pass"]', r"opcua\.verdicts is not known here"),
        (
            'kind = "csv"\nfolder = "a"\n' + OUTPUT + 'kind = "csv"\nname = "b"\nfolder = "a"',
            r"two outputs write the same files",
        ),
    ],
)
def test_mistake_is_one_line_that_says_where_and_how(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match=message) as refused:
        load(tmp_path, text)

    assert "\n" not in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("site", ["a/b", "a+", "#"])
def test_place_that_is_no_topic_is_refused_where_there_is_mqtt(site: str, tmp_path: Path) -> None:
    with pytest.raises(FlawsmithError, match="cannot be part of an MQTT topic: leave"):
        load(tmp_path, 'kind = "mqtt"\nhost = "b"', f'site = "{site}"')

    assert load(tmp_path, WEBHOOK, f'site = "{site}"').lines["bolt"].site == site


def test_paths_are_seen_from_the_folder_of_the_settings(tmp_path: Path) -> None:
    settings = load(tmp_path, 'kind = "csv"\nfolder = "files"\n' + OUTPUT + WEBHOOK + 'ca_file = "ca.pem"')

    csv, webhook = settings.lines["bolt"].outputs
    assert (csv.folder, webhook.ca_file) == (tmp_path / "files", tmp_path / "ca.pem")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("output", "package", "extra"),
    [
        ({"kind": "mqtt", "host": "b"}, "paho", "mqtt"),
        ({"kind": "modbus", "port": 0}, "pymodbus", "plc"),
        ({"kind": "opcua", "port": 0}, "asyncua", "opcua"),
    ],
)
def test_package_that_is_missing_is_named_before_anything_is_written(
    output: dict[str, object],
    package: str,
    extra: str,
    new_site: Callable[..., Site],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith((f"{package}.", *OPTIONAL))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(FlawsmithError) as refused:
        new_site(outputs=[output])

    line = f"output {output['kind']} of line bolt needs {package}, which is not installed: run `pip install 'flawsmith"
    assert str(refused.value) == f"{line}[{extra}]'`"
    assert not (tmp_path / "records").exists()


def test_line_without_such_outputs_imports_nothing_of_them() -> None:
    packages = ("paho", "pymodbus", "asyncua", "torch")
    script = f"import sys, flawsmith.line.station; print([m for m in {packages} if m in sys.modules])"

    environment = {"PYTHONPATH": str(PROJECT / "src")}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
