"""Nothing leaves the machine unasked: no look-up, no socket beyond it, no file outside the cache and the output."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

from flawsmith.benchmark import executors
from flawsmith.benchmark.executors import FinishedProcess
from flawsmith.benchmark.worker import serve
from flawsmith.cli.main import app, main
from flawsmith.pipeline import demo

# Whoever sets these wants another behaviour than that of a fresh machine.
SETTINGS = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI", "XDG_CACHE_HOME", "TF_BUILD")

WATCHED = """
import os, sys, warnings
warnings.simplefilter("ignore")
words = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
def watch(event, arguments):
    if event in words:
        print("network:", event, arguments)
sys.addaudithook(watch)
"""

INSPECTS = """
import numpy
from flawsmith import Inspector
inspector = Inspector.load(sys.argv[1], engine=sys.argv[2])
print(inspector.inspect(numpy.zeros((50, 60, 3), numpy.uint8)).verdict)
"""


def run_fresh(code: str, *arguments: str, home: Path, **environment: str) -> str:
    """What a program prints that runs as on a machine where nothing was ever set."""
    home.mkdir(exist_ok=True)
    plain = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    places = {name: str(home) for name in ("HOME", "USERPROFILE", "LOCALAPPDATA")}
    command = [sys.executable, "-c", WATCHED + code, *arguments]
    return subprocess.run(
        command, env={**plain, **places, **environment}, capture_output=True, text=True, check=True
    ).stdout.strip()


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_inspecting_reports_nothing_home(engine: str, tiny: Any, tmp_path: Path) -> None:
    tiny.make_bundle().save(tmp_path / "model.flaw")

    printed = run_fresh(INSPECTS, str(tmp_path / "model.flaw"), engine, home=tmp_path / "home")

    assert printed == "pass"
    assert files(tmp_path / "home") == []


def test_a_child_process_of_any_kind_reports_nothing_home(tmp_path: Path) -> None:
    code = """
import multiprocessing, subprocess
import flawsmith
import_engine = "import onnxruntime"
subprocess.run([sys.executable, "-c", import_engine], check=True)
with multiprocessing.get_context("spawn").Pool(1) as pool:
    pool.apply(exec, (import_engine,))
"""
    assert run_fresh(code, home=tmp_path / "home") == ""
    assert files(tmp_path / "home") == []


def test_openvino_reports_nothing_home_wherever_it_is_imported(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = """
import flawsmith, multiprocessing
from flawsmith.features.backbones import load_backbone
from flawsmith.features.extract import extractor_key
from flawsmith.runtime.geometry import Geometry
extractor_key(load_backbone("test_efficientnet@random"), Geometry(size=(32, 32)), "openvino", "float32")
with multiprocessing.get_context("spawn").Pool(1) as pool:
    pool.apply(exec, ("import flawsmith, openvino",))
"""
    assert run_fresh(code, home=tmp_path / "home") == ""
    assert not any("openvino" in name for name in files(tmp_path / "home"))


def test_whoever_sets_a_variable_on_purpose_keeps_it(tmp_path: Path) -> None:
    code = (
        "import flawsmith; print([os.environ[name] for name in ('ORT_DISABLE_TELEMETRY', 'HF_HUB_DISABLE_TELEMETRY')])"
    )

    assert run_fresh(code, home=tmp_path / "home", ORT_DISABLE_TELEMETRY="0") == "['0', '1']"


HEARD = """
import os, socket, sys
def hear(event, arguments):
    if event == "socket.connect" and arguments[0].type == socket.SOCK_STREAM or event == "socket.getaddrinfo":
        place = arguments[1] if event == "socket.connect" else arguments[:1]
        with open(os.environ["HEARD_OF"], "a") as file:
            file.write(f"{event} {place[0] if isinstance(place, tuple) else 'a file'}\\n")
sys.addaudithook(hear)
"""


def test_a_cluster_that_predict_starts_asks_nothing_beyond_the_machine(tiny: Any, tmp_path: Path) -> None:
    """Ray asks whether it runs in a cloud, in a process of its own; of its processes in Python each is heard."""
    pytest.importorskip("ray")
    import ray._private.services as services

    for folder in ("hears", "in"):
        (tmp_path / folder).mkdir()
    (tmp_path / "hears" / "sitecustomize.py").write_text(HEARD)
    Image.new("RGB", (60, 50)).save(tmp_path / "in" / "a.png")
    tiny.make_bundle().save(tmp_path / "model.flaw")
    code = """
from flawsmith.cli.main import app, main
code = main(["predict", sys.argv[1], sys.argv[2], "--ray", "local", "--out", sys.argv[3], "--quiet"])
print(code, os.environ.get("http_proxy"))
"""
    printed = run_fresh(
        code,
        *(str(tmp_path / name) for name in ("model.flaw", "in", "out")),
        home=tmp_path / "home",
        PYTHONPATH=os.pathsep.join([str(tmp_path / "hears"), os.environ.get("PYTHONPATH", "")]),
        HEARD_OF=str(tmp_path / "heard"),
        http_proxy="http://proxy.invalid:80",
    )

    assert printed.splitlines()[-1] == "0 http://proxy.invalid:80"
    near = {"a file", "localhost", "::1", "0.0.0.0", "None", services.get_node_ip_address(), socket.gethostname()}
    heard = {line.split()[1] for line in (tmp_path / "heard").read_text().splitlines()}
    assert "127.0.0.1" in heard  # where there is no proxy
    assert {host for host in heard if host not in near and not host.startswith("127.")} == set()


class Watch:
    """What Python does in this process towards the network and towards files, while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.network: list[tuple[str, Any]] = []
        self.written: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in ("socket.connect", "socket.sendto") and not _is_near(arguments[1]):
            self.network.append((event, arguments[1]))
        elif event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request") and not _is_near(arguments):
            self.network.append((event, arguments))
        elif event == "os.mkdir" or (event == "open" and _is_written(*arguments)):
            self.written.append(os.path.realpath(os.fsdecode(arguments[0])))


def _is_written(path: Any, _mode: Any, flags: int) -> bool:
    return isinstance(path, (str, bytes)) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def _is_near(address: Any) -> bool:
    host = address[0] if isinstance(address, tuple) else address
    try:
        return (
            not isinstance(address, tuple) or host in ("", None, "localhost") or ipaddress.ip_address(host).is_loopback
        )
    except ValueError:
        return False


@pytest.fixture(scope="module")
def hook() -> Watch:
    return Watch()  # an audit hook stays for the life of a process


@pytest.fixture(scope="module")
def model(trained: Callable[[str], Any]) -> str:
    """Trained before anything is watched; the graphs that training traces are kept for the other tests."""
    return str(trained("patchcore").model)


@pytest.fixture
def watch(
    model: str, hook: Watch, isolated_cache: Path, shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watch]:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    for name in ("CI", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    hook.on = True
    yield hook
    hook.on = False
    temporary = Path(tempfile.gettempdir())
    caches = [isolated_cache, shared_folder, home / ".cache", temporary / "torchinductor_"]
    allowed = [tmp_path / "out", *caches, temporary / "tmp", temporary / "flawsmith-run-"]
    beginnings = (*(os.path.realpath(folder) for folder in allowed), "/dev/", "/proc/")
    outside = [path for path in hook.written if not path.startswith(beginnings) and "__pycache__" not in path]
    network, hook.network, hook.written = hook.network, [], []
    assert network == []
    assert outside == []
    assert files(tmp_path / "here") == []
    assert [name for name in files(home) if not name.startswith((".cache", ".config"))] == []


@pytest.fixture
def tiny_options(tiny_settings: Callable[[str], dict[str, Any]]) -> list[str]:
    return [f"{name}={value}".replace("(", "[").replace(")", "]") for name, value in tiny_settings("patchcore").items()]


def test_training_keeps_to_itself(
    watch: Watch, parts: Path, tiny_options: list[str], exported_once: None, tmp_path: Path
) -> None:
    options = [option for setting in tiny_options for option in ("--set", setting)]
    out = str(tmp_path / "out")

    code = main(["train", str(parts), "--method", "patchcore", "--baseline", "none", *options, "--out", out, "--quiet"])

    assert code == 0
    assert any("model.flaw" in path for path in watch.written)


@pytest.mark.parametrize(
    "command",
    [
        "info MODEL",
        "doctor MODEL",
        "doctor PARTS",
        "predict MODEL PARTS/test --out OUT",
        "predict MODEL PARTS/test/good --engine openvino --out OUT",
        "evaluate MODEL PARTS --out OUT",
        "synthesize PARTS --n 2 --out OUT/new",
        "figure scores OUT/evaluation --out OUT/scores.png",
        "calibrate MODEL --max-false-rejects 1/2 --out OUT/new.flaw",
        "export MODEL --to onnx --out OUT/graph",
        "methods",
        "settings patchcore",
        "reproduce --list",
        "download --list",
    ],
)
def test_every_command_on_a_model_or_data_keeps_to_itself(
    command: str, watch: Watch, parts: Path, model: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    if command.startswith("figure"):
        assert main(["evaluate", model, str(parts), "--out", str(tmp_path / "out" / "evaluation")]) == 0
    places = {"MODEL": model, "PARTS": str(parts), "OUT": str(tmp_path / "out")}
    for word, place in places.items():
        command = command.replace(word, place)

    assert main(command.split()) == 0


def test_benchmark_keeps_to_itself_and_so_does_the_work_of_its_children(
    watch: Watch,
    parts: Path,
    tiny_options: list[str],
    exported_once: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compute_here(command: list[str], **_: Any) -> FinishedProcess:
        return FinishedProcess(serve(Path(command[-1])), 1.0, 0, "", False)

    monkeypatch.setattr(executors, "run_measured", compute_here)
    options = [option for setting in tiny_options for option in ("--vary", f"{setting.replace('=', '=[')}]")]

    code = main(["benchmark", str(parts), "--methods", "patchcore", *options, "--out", str(tmp_path / "out"), "--json"])

    assert code == 0
    assert any("results.csv" in path for path in watch.written)


HEARS_ALL = """
import json, os, sys
log = os.open(os.environ["HEARD_OF"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def hear(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        heard = ["network", arguments[1][0] if isinstance(arguments[1], tuple) else None]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        heard = ["network", arguments[0]]
    elif event == "sqlite3.connect" and "mode=ro" in str(arguments[0]):
        return
    elif event in ("os.mkdir", "sqlite3.connect"):
        heard = ["file", os.path.realpath(arguments[0])]
    elif event == "open" and not isinstance(arguments[0], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        heard = ["file", os.path.realpath(arguments[0])]
    else:
        return
    os.write(log, (json.dumps(heard, default=os.fsdecode) + "\\n").encode())
sys.addaudithook(hear)
"""
SECONDS = 60


class Services:
    """Services in processes of their own, of which each, and each of its children in Python, is heard."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.heard_of = folder, folder / "home", folder / "heard"
        self._processes: list[subprocess.Popen[str]] = []
        for place in (self.home, folder / "hears", folder / "here"):
            place.mkdir()
        (folder / "hears" / "sitecustomize.py").write_text(HEARS_ALL)

    def start(self, *command: object) -> subprocess.Popen[str]:
        plain = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        paths = [str(self.folder / "hears"), *(place for place in sys.path if place)]
        environment = {**plain, "PYTHONPATH": os.pathsep.join(paths), "HEARD_OF": str(self.heard_of)}
        environment |= {name: str(self.home) for name in ("HOME", "USERPROFILE", "LOCALAPPDATA")}
        code = "from flawsmith.cli.main import main; sys.exit(main(sys.argv[1:]))"
        process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; {code}", *map(str, command)],
            cwd=self.folder / "here",
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def run(self, *command: object) -> str:
        printed, _ = self.start(*command).communicate(timeout=SECONDS)
        assert self._processes[-1].returncode == 0
        return printed

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
            process.communicate(timeout=SECONDS)

    def check(self) -> None:
        """Nothing went beyond the machine, and no file outside the folder ``out``, of which some were written."""
        told = [json.loads(line) for line in self.heard_of.read_text().splitlines()]
        hosts = {subject for kind, subject in told if kind == "network"}
        written = [subject for kind, subject in told if kind == "file" and "__pycache__" not in subject]
        out, temporary = os.path.realpath(self.folder / "out"), Path(tempfile.gettempdir()).resolve()
        outside = [name for name in written if not name.startswith((out, "/dev/", "/proc/"))]
        assert [host for host in hosts if not _is_near((host,))] == []
        assert [name for name in outside if Path(name).parent != temporary] == []
        assert any(name.startswith(out) for name in written)
        assert files(self.home) == files(self.folder / "here") == []


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    started = Services(tmp_path)
    yield started
    started.stop()
    started.check()


def ask(address: str, path: str, body: bytes | None = None) -> int:
    near = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    kind = "application/json" if body and body.startswith(b"{") else "image/png"
    request = urllib.request.Request(address + path, body, {"Content-Type": kind})
    with near.open(request, timeout=SECONDS) as answer:
        answer.read()
        return int(answer.status)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_service_with_camera_and_outputs_and_a_plc_keep_to_themselves(
    services: Services, tiny: Any, tmp_path: Path
) -> None:
    (tmp_path / "parts").mkdir()
    Image.new("RGB", (60, 50)).save(tmp_path / "parts" / "a.png")
    tiny.make_bundle().save(tmp_path / "model.flaw")
    port = free_port()
    camera = 'camera = {kind = "folder", path = "parts"}'
    outputs = f'outputs = [{{kind = "modbus", port = {port}}}, {{kind = "csv", folder = "out/files"}}]'
    (tmp_path / "lines.toml").write_text(f'[lines.bolt]\nmodel = "model.flaw"\n{camera}\n{outputs}\n')

    service = services.start("serve", tmp_path / "lines.toml", "--out", tmp_path / "out", "--port", 0, "--quiet")
    assert service.stdout is not None
    address = service.stdout.readline().strip()
    assert " pass " in services.run("plc", f"127.0.0.1:{port}")
    assert ask(address, "/v1/lines/bolt/inspections", (tmp_path / "parts" / "a.png").read_bytes()) == 201
    assert ask(address, "/metrics") == 200
    services.stop()

    assert "intact" in services.run("audit", "verify", tmp_path / "out")
    assert len(files(tmp_path / "out" / "files")) == 1


def test_a_watched_folder_keeps_to_itself(services: Services, tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    Image.new("RGB", (60, 50)).save(tmp_path / "parts" / "a.png")
    tiny.make_bundle().save(tmp_path / "model.flaw")

    watch = services.start(
        "watch", tmp_path / "parts", "--model", tmp_path / "model.flaw", "--out", tmp_path / "out", "--ready", "rename"
    )

    assert watch.stdout is not None
    assert "a.png" in watch.stdout.readline()


def test_a_studio_keeps_to_itself(services: Services, tmp_path: Path) -> None:
    Image.new("RGB", (60, 50)).save(tmp_path / "a.png")

    studio = services.start("studio", tmp_path / "out", "--no-browser", "--port", 0, "--quiet")

    assert studio.stdout is not None
    address = studio.stdout.readline().strip()
    assert ask(address, "/studio/") == 200
    assert ask(address, "/v1/lines", b'{"line": "bolt"}') == 201
    assert ask(address, "/v1/lines/bolt/teach/images?name=a.png", (tmp_path / "a.png").read_bytes()) == 201


def test_of_every_command_it_is_known_whether_it_keeps_to_itself() -> None:
    """That of demo is watched by what it calls; convert is told to fetch a backbone."""
    watched = Path(__file__).read_text(encoding="utf-8")
    names = get_command(app).commands  # type: ignore[attr-defined]

    assert {f"<{name}>" for name in names if not re.search(rf'"{name}[ "]', watched)} == {"<convert>", "<demo>"}


def test_demo_keeps_to_itself(watch: Watch, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(_data: Path, *, out: Path, **_options: Any) -> Any:
        """Training is watched above."""
        from types import SimpleNamespace

        out.mkdir(parents=True)
        bundle = tiny.make_bundle()
        bundle.save(out / "model.flaw")
        return SimpleNamespace(folder=out, model=out / "model.flaw", report=out / "report.html", bundle=bundle)

    monkeypatch.setattr(demo, "train", learn)
    small = {"n_train": 3, "n_test_good": 2, "n_per_defect": 1, "size": (64, 64)}

    assert demo.run_demo(tmp_path / "out", render=small).model.is_file()


def test_the_watch_itself_sees_sockets_look_ups_and_files(hook: Watch, tmp_path: Path) -> None:
    hook.on = True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as beyond:
        beyond.connect_ex(("192.0.2.1", 9))
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("name.invalid", 80)
    (tmp_path / "file").write_text("x")
    hook.on = False
    network, hook.network = hook.network, []
    written, hook.written = hook.written, []

    assert [event for event, _ in network] == ["socket.connect", "socket.getaddrinfo"]
    assert os.path.realpath(tmp_path / "file") in written
