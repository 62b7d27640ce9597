"""What systems do differently stands in one module, and nowhere else is anything called that Windows lacks."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import mypy
import pytest
from pydantic import BaseModel

from flawsmith.runtime import system

SOURCE = Path(system.__file__).parents[1]
STUBS = Path(mypy.__file__).parent / "typeshed" / "stdlib"
"""Of Python's own library, where names that a system lacks stand under a condition."""
ASKING = {
    "os.name",
    "sys.platform",
    "sys.getwindowsversion",
    "platform.system",
    "platform.platform",
    "platform.win32_ver",
}
POSIX_OPTIONS = {"preexec_fn", "start_new_session", "process_group", "pass_fds", "creationflags", "startupinfo"}
"""Of starting a process; the last two are Windows' own."""
POSIX_PLACES = ("/bin/", "/dev/shm", "/etc/", "/proc/self", "/sys/", "/tmp/", "/usr/", "/var/")


@cache
def names_of(module: str, platform: str) -> frozenset[str]:
    """The names that a module of the standard library has on a system."""
    place = STUBS.joinpath(*module.split("."))
    stub = next((path for path in (place.with_suffix(".pyi"), place / "__init__.pyi") if path.is_file()), None)
    if stub is None:
        return frozenset()
    return frozenset(_declared(ast.parse(stub.read_text(encoding="utf-8")).body, platform))


def _declared(body: list[ast.stmt], platform: str) -> Iterator[str]:
    facts = {"sys": SimpleNamespace(platform=platform, version_info=(3, 11)), "TYPE_CHECKING": True}
    for node in body:
        if isinstance(node, ast.If):
            holds = eval(compile(ast.Expression(node.test), "stub", "eval"), facts)
            yield from _declared(node.body if holds else node.orelse, platform)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname for alias in node.names if alias.asname)


def names_by_system(module: str) -> list[frozenset[str]]:
    return [names_of(module, platform) for platform in ("linux", "win32", "darwin")]


def is_of_some_systems(module: str, name: str | None = None) -> bool:
    """Whether a name of the standard library, or the whole module, is there on some systems and not on all."""
    there = [bool(names) if name is None else name in names for names in names_by_system(module)]
    return any(there) and not all(there)


def differences(tree: ast.Module) -> list[str]:
    """What a module says that Windows or macOS does not know, or asks for the system: a line each."""
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
    return [f"{node.lineno}: {words}" for node in ast.walk(tree) if (words := _difference(node, modules))]


def _difference(node: ast.AST, modules: dict[str, str]) -> str:
    if isinstance(node, ast.Import):
        return ", ".join(alias.name for alias in node.names if is_of_some_systems(alias.name))
    if isinstance(node, ast.ImportFrom) and node.module:
        return ", ".join(f"{node.module}.{alias.name}" for alias in node.names if _is_special(node.module, alias.name))
    if isinstance(node, ast.Attribute):
        module = modules.get(ast.unparse(node.value), "")
        return f"{module}.{node.attr}" if _is_special(module, node.attr) else ""
    if isinstance(node, ast.Call):
        function, (subject, name, *_) = ast.unparse(node.func), (*node.args, None, None)
        if function in ("getattr", "hasattr") and isinstance(name, ast.Constant) and subject is not None:
            module = modules.get(ast.unparse(subject), "")
            return f"{module}.{name.value}" if _is_special(module, str(name.value)) else ""
        if function.endswith("get_context") and isinstance(subject, ast.Constant) and subject.value != "spawn":
            return f"multiprocessing by {subject.value}"
    if isinstance(node, ast.keyword) and node.arg in POSIX_OPTIONS:
        return node.arg
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(POSIX_PLACES):
        return node.value
    return ""


def _is_special(module: str, name: str) -> bool:
    return f"{module}.{name}" in ASKING or is_of_some_systems(module, name) or is_of_some_systems(module)


@pytest.mark.parametrize(
    "code",
    [
        "import fcntl",
        "import msvcrt",
        "import os\nos.O_BINARY",
        "from resource import getrlimit",
        "from os import killpg, getpid",
        "import os\nos.fork()",
        "import os as system\nsystem.pread(0, 1, 2)",
        "import signal\nhasattr(signal, 'SIGHUP')",
        "import signal\ngetattr(signal, 'pthread_kill')",
        "import socket\nsocket.AF_UNIX",
        "import os\nos.open('x', os.O_DIRECTORY)",
        "import os\nlen(os.sched_getaffinity(0))",
        "import time\ntime.tzset()",
        "import os\nif os.name == 'nt': pass",
        "import sys\nsys.platform",
        "import platform\nplatform.system()",
        "from sys import platform",
        "import subprocess\nsubprocess.Popen([], preexec_fn=print)",
        "import multiprocessing\nmultiprocessing.get_context('fork')",
        "open('/tmp/x')",
    ],
)
def test_the_search_sees_whatever_one_system_has_alone(code: str) -> None:
    assert differences(ast.parse(code))


@pytest.mark.parametrize("code", ["import os\nos.kill(os.getpid(), 0)", "import signal\nsignal.SIGTERM", "'/a/b'"])
def test_the_search_passes_what_all_systems_have(code: str) -> None:
    assert differences(ast.parse(code)) == []


def test_fields_that_pydantic_before_2_10_warns_of_are_allowed() -> None:
    """Its warning reaches whoever imports the service as a library."""
    for module in pkgutil.walk_packages([str(SOURCE)], "flawsmith."):
        if not module.name.startswith(("flawsmith.extras", "flawsmith.__main__")):
            import_module(module.name)
    waiting, warned = [BaseModel], []
    while waiting:
        waiting += (model := waiting.pop()).__subclasses__()
        if model.__module__.startswith("flawsmith.") and model.model_config.get("protected_namespaces") != ():
            warned += [f"{model.__name__}.{name}" for name in model.model_fields if name.startswith("model_")]

    assert warned == []


def test_only_one_module_knows_what_systems_do_differently() -> None:
    elsewhere = {
        path.relative_to(SOURCE).as_posix(): lines
        for path in sorted(SOURCE.rglob("*.py"))
        if path != Path(system.__file__) and (lines := differences(ast.parse(path.read_text(encoding="utf-8"))))
    }

    assert elsewhere == {}
