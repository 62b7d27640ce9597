"""The examples that are not Python's decide as Flawsmith does: they reproduce the test vectors of exported folders."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from flawsmith.pipeline.export import export_bundle
from flawsmith.runtime.decision import Decision
from flawsmith.runtime.geometry import Geometry
from flawsmith.runtime.inspector import Inspector

PROJECT = Path(__file__).parents[2]
EXAMPLES = PROJECT / "examples"
SIZE = (32, 48)
GEOMETRIES = {
    "squash, bilinear": {"policy": "squash", "interpolation": "bilinear"},
    "crop, bicubic": {"policy": "crop", "interpolation": "bicubic", "resize": 55},
    "letterbox, lanczos": {"policy": "letterbox", "interpolation": "lanczos"},
}
"""Each policy and each filter once."""


@pytest.fixture(scope="module")
def folders(
    tiny: Any, trained_small: Callable[[str], Any], parts: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Exported folders by name: each way of resizing with a tiny graph, and a trained model."""
    base = tmp_path_factory.mktemp("exports")
    made = {}
    for name, settings in GEOMETRIES.items():
        geometry = Geometry(size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), **settings)
        bundle = tiny.make_bundle(geometry=geometry, parity={"score_allowed": 1e-5, "map_allowed": 1e-5})
        scores = [Inspector.load(bundle).inspect(file).score for file in sorted(parts.rglob("*.png"))[:2]]
        limit = sum(scores) / 2
        decision = Decision(limit=limit, map_limit=limit, stated_false_reject_rate=0.05, n_good=19)
        bundle = tiny.make_bundle(
            geometry=geometry, decision=decision, parity={"score_allowed": 1e-5, "map_allowed": 1e-5}
        )
        made[name] = export_bundle(bundle, "onnx", images=parts, out=base / name.replace(", ", "-")).path
    export_of = functools.partial(export_bundle, trained_small("pbas").bundle, images=parts)
    made["trained, int8"] = export_of("onnx-int8", out=base / "int8", max_loss=0.99).path
    made["trained"] = export_bundle(trained_small("pbas").bundle, "onnx", images=parts, out=base / "trained").path
    return made


def vectors_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "decision.json").read_text(encoding="utf-8"))["test_vectors"]


# C++


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled example, against the library of the Python package."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    header = Path(os.environ.get("ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime"))
    if not (header / "onnxruntime_cxx_api.h").is_file():
        pytest.skip("there is no header of ONNX Runtime (ONNXRUNTIME_INCLUDE, or Debian's libonnxruntime-dev)")
    for needed in ("stb/stb_image.h", "nlohmann/json.hpp"):
        if not (Path("/usr/include") / needed).is_file():
            pytest.skip(f"there is no {needed} (Debian's libstb-dev and nlohmann-json3-dev)")
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("this ONNX Runtime comes without a library for C++")
    folder = tmp_path_factory.mktemp("cpp")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(libraries[0])
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Werror", str(EXAMPLES / "cpp" / "inspect.cpp"), f"-I{header}"]
    command += [f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}", "-o", str(folder / "inspect")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder / "inspect"


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", [*GEOMETRIES, "trained", "trained, int8"])
def test_cpp_reproduces_the_test_vectors(program: Path, folders: dict[str, Path], name: str) -> None:
    result = run(program, folders[name], "--check")

    count = len(vectors_of(folders[name]))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == f"{count} of {count} test vectors come out"


def test_cpp_says_where_a_test_vector_does_not_come_out(
    program: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["trained"], tmp_path / "changed")
    facts = json.loads((folder / "decision.json").read_text(encoding="utf-8"))
    facts["test_vectors"][0]["score"] += 3 * facts["tolerance"]["score"] + 1
    (folder / "decision.json").write_text(json.dumps(facts), encoding="utf-8")

    result = run(program, folder, "--check")

    assert result.returncode == 1
    count = len(facts["test_vectors"])
    assert f"{count - 1} of {count} test vectors" in result.stdout


def test_cpp_gives_flawsmiths_verdicts_on_other_images(
    program: Path, folders: dict[str, Path], trained_small: Callable[[str], Any], parts: Path
) -> None:
    images = sorted((parts / "test").rglob("*.png"))
    inspector = Inspector.load(trained_small("pbas").bundle)

    result = run(program, folders["trained"], *images)

    assert result.returncode == 0, result.stderr
    words = [line.split()[:2] for line in result.stdout.splitlines()]
    expected = [inspector.inspect(image) for image in images]
    assert [verdict for verdict, _ in words] == [inspection.verdict for inspection in expected]
    assert [float(score) for _, score in words] == pytest.approx([i.score for i in expected], rel=1e-3)


def test_cpp_refuses_limits_that_it_does_not_know(program: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["trained"], tmp_path / "regions")
    facts = json.loads((folder / "decision.json").read_text(encoding="utf-8"))
    facts["decision"]["decides"] = "map"
    (folder / "decision.json").write_text(json.dumps(facts), encoding="utf-8")

    result = run(program, folder, "--check")

    assert (result.returncode, result.stdout) == (2, "")
    assert "decision.json asks for more" in result.stderr


# Browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RUNTIME = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
SECONDS = 60

# What a user does, and the page's answers: the title once all test vectors were tried, then a file that is chosen.
REPORT = """
const sleep = () => new Promise((done) => setTimeout(done, 20));
const send = (text) => fetch("answer", { method: "POST", body: text });
(async () => {
  while (document.title === "Flawsmith in the browser") await sleep();
  const title = document.title;
  if (title.startsWith("error")) return send(title);
  const chosen = new DataTransfer();
  chosen.items.add(new File([await (await fetch("photo.png")).blob()], "photo.png", { type: "image/png" }));
  const chooser = document.querySelector("input"), line = document.querySelector("#verdict");
  chooser.files = chosen.files;
  chooser.dispatchEvent(new Event("change"));
  while (!line.textContent) await sleep();
  send([title, line.textContent, document.querySelector("canvas").width].join("|"));
})();
"""


@pytest.fixture(scope="module")
def runtime() -> Path:
    """ONNX Runtime for browsers, as the example's own script fetches it; kept in build/."""
    if BROWSER is None:
        pytest.skip("there is no Chromium")
    folder = PROJECT / "build" / "onnxruntime-web"
    if not all((folder / name).is_file() for name in RUNTIME):
        if shutil.which("npm") is None:
            pytest.skip("there is no npm to get onnxruntime-web with")
        result = subprocess.run(
            [EXAMPLES / "browser" / "get_runtime.sh", folder], capture_output=True, text=True, check=False
        )
        if result.returncode:
            pytest.skip(f"npm cannot get onnxruntime-web: {result.stderr.strip()[-200:]}")
    return folder


class Site(SimpleHTTPRequestHandler):
    """A plain file server that adds a script to the page, and takes its answer."""

    answers: list[str]
    answered: threading.Event

    def do_GET(self) -> None:
        if self.path.startswith("/index.html"):
            page = Path(self.directory, "index.html").read_text(encoding="utf-8")
            content = page.replace("</html>", '<script src="report.js"></script></html>').encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content)
        else:
            super().do_GET()

    def do_POST(self) -> None:
        self.answers.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()
        self.answered.set()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002, likewise
        """Say nothing."""


@pytest.fixture
def browse(runtime: Path, tmp_path: Path) -> Iterator[Callable[[Path, Path], str]]:
    """``browse(folder, photo)``: what the page answers with this export and this photograph."""
    site = tmp_path / "site"
    site.mkdir()
    for file in (EXAMPLES / "browser" / "index.html", EXAMPLES / "browser" / "inspect.js"):
        shutil.copy(file, site)
    for name in RUNTIME:
        (site / name).symlink_to(runtime / name)
    (site / "report.js").write_text(REPORT, encoding="utf-8")
    handler = type("Answers", (Site,), {"answers": [], "answered": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def open_page(folder: Path, photo: Path) -> str:
        shutil.copytree(folder, site / "model")
        shutil.copy(photo, site / "photo.png")
        address = f"http://127.0.0.1:{server.server_address[1]}/index.html?check"
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}/user",
            "--remote-debugging-port=0",
        ]
        browser = subprocess.Popen(
            [str(BROWSER), *options, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            handler.answered.wait(SECONDS)
        finally:
            browser.terminate()
            browser.wait(SECONDS)
        assert handler.answers, f"the page has not answered within {SECONDS} s"
        return handler.answers[0]

    yield open_page
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["crop, bicubic", "letterbox, lanczos", "trained", "trained, int8"])
def test_page_reproduces_the_test_vectors_and_judges_a_chosen_file(
    browse: Callable[[Path, Path], str], folders: dict[str, Path], name: str
) -> None:
    vector = vectors_of(folders[name])[0]

    answer = browse(folders[name], folders[name] / vector["image"])

    count = len(vectors_of(folders[name]))
    title, line, width = answer.split("|")
    assert title == f"{count} of {count} test vectors come out"
    assert line.startswith(f"{vector['verdict']}: score ")
    assert int(width) > 1


# What stands in the files


def test_examples_are_short_and_name_no_other_server() -> None:
    lengths = {
        name: len((EXAMPLES / name).read_text(encoding="utf-8").splitlines())
        for name in ("cpp/inspect.cpp", "csharp/Program.cs", "browser/inspect.js")
    }

    assert max(lengths.values()) <= 150, lengths
    for file in (EXAMPLES / "browser").iterdir():
        if file.suffix in (".html", ".js") and not file.name.startswith("ort"):
            assert not re.search(r"https?://", file.read_text(encoding="utf-8")), file.name
