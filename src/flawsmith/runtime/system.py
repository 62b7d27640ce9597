"""What the operating systems do each in its own way. No other module calls what Windows lacks, or asks for the system.

A test reads them all for that. The branches for Windows and macOS are by the book and have not been run.
"""

from __future__ import annotations

import _thread
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

if sys.platform == "win32":
    import ctypes
    import msvcrt
else:
    import fcntl
    import resource

ENDING: tuple[signal.Signals, ...]
"""Signals by which a user or the system asks a program to end."""
KILL: signal.Signals
"""Ends a process of this user at once, whatever it is doing."""
if sys.platform == "win32":
    ENDING, KILL = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK), signal.SIGTERM
else:
    ENDING, KILL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIGKILL
OPEN_FILES_STAY = sys.platform == "win32"
"""Whether a file that is open can be neither removed nor renamed."""

# Files


def lock_first_byte(file: IO[bytes]) -> bool:
    """Lock the first byte of an open file without waiting; the lock ends with the file or the process.

    A file system without locks gives the lock to everyone.

    Returns:
        Whether the lock was free; False: another process holds it.

    Raises:
        OSError: it cannot be asked for.
    """
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            # Not flock: forked children would share the lock and hold it when this process is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return True


def sync_folder(folder: Path) -> None:
    """Let the names in a folder survive a power cut; Windows, which opens no folder, leaves that to its file system."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# This process


def wake_main_thread(number: int) -> None:
    """Send this process a signal so that its main thread hears it even where it waits for something."""
    if sys.platform == "win32":
        _thread.interrupt_main(signal.Signals(number))
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def confine(seconds: int, memory_bytes: int | None) -> None:
    """Bound what this process may use from now on: it ends when its time is over.

    On Linux alone its memory is bounded too, where the limit counts all of it, and should the machine lack memory, this
    process goes before others.

    Args:
        seconds: from now on, whatever it is computing then.
        memory_bytes: None: any.
    """
    if sys.platform == "linux":
        if memory_bytes is not None:
            _, most = resource.getrlimit(resource.RLIMIT_DATA)
            bound = memory_bytes if most == resource.RLIM_INFINITY else min(memory_bytes, most)
            resource.setrlimit(resource.RLIMIT_DATA, (bound, most))
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if sys.platform == "win32":
        timer = threading.Timer(seconds, os._exit, (1,))
        timer.daemon = True
        timer.start()
    else:
        signal.alarm(seconds)  # whose default ends the process


# Priorities

if sys.platform == "win32":
    _BELOW_NORMAL, _LOWEST = 0x4000, -2
    _kernel = ctypes.WinDLL("kernel32")
    for _name in ("GetCurrentProcess", "GetCurrentThread"):
        getattr(_kernel, _name).restype = ctypes.c_void_p
    _kernel.SetPriorityClass.argtypes = (ctypes.c_void_p, ctypes.c_ulong)
    _kernel.SetThreadPriority.argtypes = (ctypes.c_void_p, ctypes.c_int)


def give_way(niceness: int) -> None:
    """Let this process, and those that it starts, compute after others.

    Args:
        niceness: 0 to 19, added to its own; Windows knows one step.
    """
    if sys.platform == "win32":
        _kernel.SetPriorityClass(_kernel.GetCurrentProcess(), _BELOW_NORMAL)
    else:
        os.nice(niceness)


def give_way_in_this_thread() -> None:
    """Let this thread, and on Linux those that it starts, compute when nobody else does; on macOS it stays as it is."""
    if sys.platform == "win32":
        _kernel.SetThreadPriority(_kernel.GetCurrentThread(), _LOWEST)
    elif sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


# Other processes

# A process that waits at the standard input for the end of the pipe, and then ends its group. It is a child of the
# command and not of the one that starts it: a Ray worker that ends kills its own children, but not theirs.
_GUARD = 'exec 3<&0; { read -r _; kill -9 0; } <&3 2>/dev/null & exec "$@" 3<&- </dev/null'


def guarded(command: Sequence[str]) -> Sequence[str]:
    """A command that ends, with its children, when its standard input does; on Windows it does not."""
    return command if sys.platform == "win32" else ["/bin/sh", "-c", _GUARD, "sh", *command]


def start_group(command: Sequence[str], *, niceness: int = 0, **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that leads a group: Ctrl-C in this terminal reaches neither it nor its children.

    Args:
        command: program and arguments.
        niceness: as of `give_way`, from 0.
        options: of `subprocess.Popen`.

    Raises:
        OSError: it cannot be started.
    """
    if sys.platform == "win32":
        priority = subprocess.BELOW_NORMAL_PRIORITY_CLASS if niceness else 0
        return subprocess.Popen(command, creationflags=subprocess.CREATE_NEW_PROCESS_GROUP | priority, **options)
    process = subprocess.Popen(command, start_new_session=True, **options)
    if niceness:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, niceness)
    return process


def ask_to_end(pid: int) -> None:
    """Ask a process that leads a group to end in order, as Ctrl-C does; on Windows it has to share this console.

    Nothing happens where it has ended.
    """
    with suppress(OSError):
        if sys.platform == "win32":
            os.kill(pid, signal.CTRL_BREAK_EVENT)
        else:
            os.kill(pid, signal.SIGTERM)


def end_group(pid: int) -> None:
    """End a process that leads a group, and its children, at once; nothing where they have ended."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(pid)], capture_output=True, check=False)
    else:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def anonymous_bytes(pid: int) -> int | None:
    """Memory of a process that no file backs, pages shared with others counted in part; Linux alone tells it.

    Returns:
        Bytes; None where the system, or a kernel before 5.4, does not say.

    Raises:
        OSError: the process has ended.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    for line in rollup.read_text(encoding="utf-8").splitlines() if rollup.exists() else ():
        if line.startswith("Pss_Anon:"):
            return 1024 * int(line.split()[1])
    return None


def notify_systemd(message: str) -> None:
    """Tell systemd something, where it started the service and asked to be told (``Type=notify``).

    Args:
        message: as sd_notify(3) has it, such as ``READY=1``.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if sys.platform != "win32" and address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect("\0" + address[1:] if address.startswith("@") else address)
            sender.send(message.encode())
