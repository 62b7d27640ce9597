"""Addresses of Ray clusters that lead nowhere: one line, within seconds."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flawsmith.cli.main import main
from flawsmith.extras.ray import check_address, connected, cpus_of_nodes, in_one_line
from flawsmith.runtime.errors import FlawsmithError


@pytest.fixture
def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_address_where_nobody_listens_is_refused(closed_port: str) -> None:
    with pytest.raises(FlawsmithError, match=f"no Ray cluster answers at {closed_port} .*refused"):
        check_address(closed_port)


@pytest.mark.parametrize("address", ["nonsense", "host", "host:port", "http://host:1", "host:99999999", ""])
def test_what_is_no_address_is_told_how_to_be_one(address: str) -> None:
    with pytest.raises(FlawsmithError, match=r"is no address: give local, auto, HOST:PORT or ray://HOST:PORT"):
        check_address(address)


def test_port_that_cannot_be_is_refused() -> None:
    with pytest.raises(FlawsmithError, match=r"no Ray cluster answers at 127\.0\.0\.1:99999"):
        check_address("127.0.0.1:99999")


def test_running_cluster_is_found(ray_cluster: str) -> None:
    check_address(ray_cluster)


def test_address_in_the_environment_is_the_automatic_one(closed_port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed_port)

    with pytest.raises(FlawsmithError, match=f"answers at {closed_port}"):
        check_address("auto")


def test_without_ray_both_commands_say_what_to_install(
    tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.make_bundle().save(tmp_path / "model.flaw")
    (tmp_path / "a.png").touch()
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)

    for command in (["predict", "model.flaw", "a.png"], ["benchmark", ".", "--methods", "pbas"]):
        assert main([*command, "--ray", "auto"]) == 2
        said = capsys.readouterr().err
        assert "--ray needs Ray, which is not installed: run `pip install 'flawsmith[ray]'`" in said
        assert said.count("\n") == 1


def test_both_commands_refuse_an_address_without_cluster(
    closed_port: str,
    tmp_path: Path,
    tiny: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny.make_bundle().save(tmp_path / "model.flaw")
    (tmp_path / "a.png").touch()
    monkeypatch.chdir(tmp_path)

    for command in (["predict", "model.flaw", "a.png"], ["benchmark", ".", "--methods", "pbas"]):
        assert main([*command, "--ray", closed_port]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: no Ray cluster answers at ")
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.30.0\n"), "started with: Ray: 2.30"),
        (ConnectionError("Could not find any running Ray instance."), "Could not find any running"),
    ],
)
def test_what_ray_refuses_is_one_line(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**options: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", refuse)

    with pytest.raises(FlawsmithError, match=words) as caught, connected("auto"):
        pass

    assert "\n" not in str(caught.value)


class _Nodes:
    def __init__(self, *cpus: float | None, alive: bool = True) -> None:
        self._nodes = [{"Alive": alive, "Resources": {} if one is None else {"CPU": one}} for one in cpus]

    def nodes(self) -> list[dict[str, object]]:
        return self._nodes


def test_nodes_that_offer_no_cpus_are_not_counted() -> None:
    assert cpus_of_nodes(_Nodes(None, 4.0, 0.0, 16.0)) == [4, 16]


@pytest.mark.parametrize("nodes", [_Nodes(None), _Nodes(8.0, alive=False)])
def test_cluster_without_cpus_is_refused(nodes: _Nodes) -> None:
    with pytest.raises(FlawsmithError, match="no node of the Ray cluster offers CPUs"):
        cpus_of_nodes(nodes)


def test_remote_traceback_is_cut_to_what_it_says() -> None:
    class RemoteError(Exception):
        cause: BaseException | None = None

    bare = RemoteError("ray::on_node()\nTraceback (most recent call last):\n  File x\nValueError: no luck\n")
    with_cause = RemoteError("Traceback of no interest")
    with_cause.cause = FlawsmithError("bolt is gone")

    assert in_one_line(bare) == "ValueError: no luck"
    assert in_one_line(with_cause) == "bolt is gone"
    assert in_one_line(RemoteError()) == "RemoteError"


def test_connection_lasts_as_long_as_its_block_and_prints_nothing(
    ray_cluster: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    assert not ray.is_initialized()
    capfd.readouterr()

    with connected(ray_cluster) as module:
        assert module is ray
        assert cpus_of_nodes(ray) == [2]
        with connected("nowhere:1") as same:  # who is connected stays so
            assert same is ray
        assert ray.is_initialized()

    assert not ray.is_initialized()
    assert capfd.readouterr() == ("", "")
