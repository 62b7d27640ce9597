"""Finding image files in folders, and writing results so that a reader never sees half a file."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, wraps
from pathlib import Path
from typing import BinaryIO, TypeVar

from flawsmith.runtime.errors import FlawsmithError

T = TypeVar("T")

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    """
    .png .apng .jpg .jpeg .jpe .jfif .jif .bmp .dib .tif .tiff .webp .gif .ppm .pgm .pbm .pnm .jp2 .j2k .j2c .jpc .jpf
    .jpx
    """.split()  # noqa: SIM905
)
"""File name endings, in lower case, that count as images when a folder is searched."""

_NO_IMAGES: frozenset[str] = frozenset(
    """
    .txt .csv .tsv .json .jsonl .xml .yaml .yml .toml .ini .cfg .conf .md .rst .log .html .htm .css .js .pdf .rtf .doc
    .docx .xls .xlsx .odt .ods .py .pyc .ipynb .sh .bat .ps1 .db .lnk .url .md5 .sha1 .sha256 .flaw .onnx .ckpt
    .safetensors .pt .pth .pkl .pickle .pyb .tmp .part .lock .bak .ply .pcd .stl .xmp .aae .thm .gpx
    """.split()  # noqa: SIM905
)
"""Endings of what lies beside images and shows no part."""
_NAMED_ENDINGS = 6
_NO_IMAGE_NAMES = frozenset({"readme", "license", "licence", "copying", "notice", "changelog", "makefile", "checksums"})


_STRAY = frozenset(
    {
        *("$recycle.bin", "recycler", "recycled", "system volume information", "thumbs", "msdownld.tmp"),  # Windows
        *("msocache", "recycle bin", "papierkorb", "corbeille", "papelera de reciclaje", "papelera", "cestino"),
        *("lixeira", "prullenbak", "kosz", "корзина", "ごみ箱", "回收站", "휴지통", "onedrivetemp"),
        *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),  # macOS and its archives
        "ipod photo cache",
        *("lost+found", "trash", "paxheader", "paxheaders"),  # Linux and archives
        *("recycle", "#recycle", "#snapshot", "~snapshot"),  # boxes
        *("thumbnails", "thumbnail", "thumb", "_thumbs", "_thumbnails", "_vti_cnf", "_gsdata_", "captureone"),
        *("__thumbnails__", "picasa originals", "desktop db", "desktop df", "__pycache__", "node_modules"),
    }
)
# Boxes begin the names of their folders with @, Windows those of its own with $; people hardly do. Images have endings.
_PATTERN_OF_STRAY = re.compile(r"(found|paxheaders)\.\d+|.*\.lrdata|[@$][^.]+|thumb(nail)?s?[_-]?\d+", re.ASCII)


def is_stray(name: str) -> bool:
    """Whether a file or folder was made by a system, not by a person: hidden, a recycle bin, a folder of thumbnails.

    Example:
        >>> [is_stray(name) for name in (".cache", "@eaDir", "$RECYCLE.BIN", "__MACOSX", "lost+found", "good")]
        [True, True, True, True, True, False]
    """
    lower = name.casefold()
    return name.startswith(".") or lower in _STRAY or _PATTERN_OF_STRAY.fullmatch(lower) is not None


def is_folder(path: str | Path) -> bool:
    """Whether a path leads to a folder; one that is too long, or that may not be followed, leads to none."""
    return os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises for such a path)


def expanded(path: str | Path) -> Path:
    """The path with ``~`` as the user's own folder; that of an unknown user stays, and leads nowhere."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises for an unknown user)


def once_a_file(maxsize: int) -> Callable[[Callable[[Path], T]], Callable[[Path], T]]:
    """Decorator: what a function says of a file is kept in the process until size or time of writing change.

    Args:
        maxsize: files of which it is kept.

    Example:
        >>> import tempfile
        >>> file, reads = Path(tempfile.mkdtemp()) / "a", []
        >>> @once_a_file(8)
        ... def length_of(path):
        ...     reads.append(path)
        ...     return len(path.read_bytes())
        >>> _ = file.write_bytes(b"abc")
        >>> length_of(file), length_of(file), len(reads)
        (3, 3, 1)
    """

    def decorate(function: Callable[[Path], T]) -> Callable[[Path], T]:
        kept = lru_cache(maxsize)(lambda path, size, mtime_ns: function(path))

        @wraps(function)
        def of_file(path: Path) -> T:
            status = path.stat()
            return kept(path, status.st_size, status.st_mtime_ns)

        return of_file

    return decorate


def iter_images(folder: str | Path, *, without: str | Path | None = None) -> Iterator[Path]:
    """Yields the image files under a folder, one at a time, in the order of ``sorted(paths)``.

    Only the names of the folders on the way to the current file are held, so a tree of any size can be
    walked. Hidden files and folders (a leading dot) and those that systems make (`is_stray`) are left out. Links to
    folders are followed, except back into a parent. A broken link or another special file with an image's name is
    listed: whoever opens it then learns what is wrong with it.

    Args:
        folder: where to search, with all its subfolders.
        without: a folder that is passed over, whether it is there or not.

    Raises:
        FlawsmithError: the folder is missing, is a file, or may not be read.
    """
    root = Path(folder)
    if is_folder(root):
        passed_over: set[tuple[int, int]] = set()
        if without is not None:
            with suppress(OSError):
                status = Path(without).stat()
                passed_over.add((status.st_dev, status.st_ino))
        return (path for path, is_image in _walk(root, frozenset(passed_over)) if is_image)
    if os.path.exists(root):  # noqa: PTH110 (Path.exists raises where is_folder does not)
        raise FlawsmithError(f"{root}: is a file where a folder of images is needed")
    raise FlawsmithError(f"{root}: no such folder; check the path and the rights to it")


def find_images(folder: str | Path) -> list[Path]:
    """Returns all image files under a folder: `iter_images` as a list.

    Args:
        folder: where to search, with all its subfolders.

    Returns:
        Paths that begin with ``folder``, sorted; empty where there are none.

    Raises:
        FlawsmithError: the folder is missing, is a file, or may not be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b.png", "a.jpg", "notes.txt"):
        ...     (folder / name).touch()
        >>> [path.name for path in find_images(folder)]
        ['a.jpg', 'b.png']
    """
    return list(iter_images(folder))


def left_out(paths: Iterable[str | Path], *, results: str | Path | None = None) -> dict[str, int]:
    """Counts the files of folders that may show parts, but are no images that can be read.

    Args:
        paths: folders, searched with their subfolders; files among them are not looked at.
        results: a folder to pass over, which holds results.

    Returns:
        Number of files by ending, the commonest first: HEIC, camera raw, arrays, archives, whatever is unknown. Text,
        tables and the like are not counted.

    Raises:
        FlawsmithError: a folder may not be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a.png", "b.HEIC", "c.heic", "d.npy", "notes.txt"):
        ...     (folder / name).touch()
        >>> left_out([folder])
        {'.heic': 2, '.npy': 1}
    """
    passed = None if results is None else os.path.abspath(results) + os.sep  # noqa: PTH100 (links stay as they are)
    endings: Counter[str] = Counter()
    for root in map(Path, paths):
        for path, is_image in _walk(root, frozenset()) if is_folder(root) else ():
            ending = path.suffix.lower()
            beside = ending in _NO_IMAGES or (not ending and path.name.lower() in _NO_IMAGE_NAMES)
            if not (is_image or beside or (passed and os.path.abspath(path).startswith(passed))):  # noqa: PTH100
                endings[ending] += 1
    return dict(endings.most_common())


def left_out_note(endings: Mapping[str, int]) -> str:
    """What `left_out` counted, in one line; empty where that is nothing.

    Example:
        >>> left_out_note({".heic": 9, "": 1})
        '9 files .heic and 1 file without an ending were left out: save them as PNG or JPEG'
    """
    counts = [f"{n} {'file' if n == 1 else 'files'} {ending or 'without an ending'}" for ending, n in endings.items()]
    if len(counts) > _NAMED_ENDINGS:
        rest = sum(list(endings.values())[_NAMED_ENDINGS:])
        counts = [*counts[:_NAMED_ENDINGS], f"{rest} of other endings"]
    if not counts:
        return ""
    several = sum(endings.values()) > 1
    named = " and ".join([", ".join(counts[:-1]), counts[-1]] if len(counts) > 1 else counts)
    return f"{named} {'were' if several else 'was'} left out: save {'them' if several else 'it'} as PNG or JPEG"


def further_pictures_note(named: Sequence[str], count: int) -> str:
    """What is said of files whose first picture alone was inspected, in one line; empty where there are none.

    Args:
        named: the first few of them.
        count: number of all.

    Example:
        >>> further_pictures_note(["a.gif", "b.gif"], 3)
        '3 files hold further pictures, and the first of a file was inspected alone: a.gif, b.gif and 1 more'
    """
    if not count:
        return ""
    files = "1 file holds" if count == 1 else f"{count} files hold"
    names = ", ".join(named) + (f" and {count - len(named)} more" if count > len(named) else "")
    return f"{files} further pictures, and the first of a file was inspected alone: {names}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry leads to a folder; a link that leads back to itself leads nowhere."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _walk(folder: Path, ancestors: frozenset[tuple[int, int]]) -> Iterator[tuple[Path, bool]]:
    """The files of a folder and those below it, and whether their names are those of images; not of ``ancestors``."""
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:
            return
        with os.scandir(folder) as entries:
            listing = sorted((entry.name, _is_folder(entry)) for entry in entries if not is_stray(entry.name))
    except OSError as error:
        raise FlawsmithError(f"{folder}: cannot list this folder ({error.strerror}); check its permissions") from None
    for name, is_folder in listing:
        if is_folder:
            yield from _walk(folder / name, ancestors | {identity})
        else:
            yield folder / name, os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` that takes its place when the block ends well.

    A reader of ``path`` sees the old content or the new, never a part; after an error the old content stays. Where the
    old file cannot be replaced, as it is open in a program on Windows or another user's, the new one is kept beside it.

    Args:
        path: the file to write; its folder must exist.

    Yields:
        The temporary path, which the block has to create.

    Raises:
        FlawsmithError: the folder is missing or may not be written, or the disk is full.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "scores.csv"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("a,1")
        >>> target.read_text()
        'a,1'
    """
    target = Path(path)
    if is_folder(target):
        raise FlawsmithError(f"{target} is a folder: give the name of a file")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        try:
            temporary.replace(target)
        except OSError as error:
            raise _irreplaceable(target, temporary, error) from None
    except OSError as error:
        reason = error.strerror or str(error)
        fix = _FIXES.get(error.errno or 0, "choose a folder that exists")
        raise FlawsmithError(f"{target}: cannot be written ({reason}); {fix}") from None
    finally:
        with suppress(OSError):  # of a read-only file system, even where there is no such file
            temporary.unlink(missing_ok=True)


_FIXES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space and repeat"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a folder that may be written"),
}


def _irreplaceable(target: Path, temporary: Path, error: OSError) -> FlawsmithError:
    """What to do about a file that cannot be replaced, once the new one has a name that people see."""
    message = f"{target} cannot be replaced ({error.strerror or error}): close the program that has it open"
    beside = target.with_name(f"{target.stem}.new{target.suffix}")
    try:
        temporary.replace(beside)
    except OSError:
        return FlawsmithError(f"{message}, and repeat")
    return FlawsmithError(f"{message}; the new one is {beside}")


BASELINE_FOLDER = "baseline"
"""Folder inside a run's where the model of the baseline lies."""
BASELINES = ("patchcore", "padim")
"""Methods that learn nothing and take seconds."""
_LONGEST_STEM = 60  # at most four bytes a character, within the 255 bytes that file systems allow with room to spare


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to be read, unless it is a named pipe or a device, which would be waited for.

    Args:
        path: of the file.

    Raises:
        OSError: it is none, or cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
        raise OSError(errno.EINVAL, "is not a regular file")
    return Path(path).open("rb")


def printable(path: str | os.PathLike[str]) -> str:
    r"""A path as text that any UTF-8 file can hold; bytes of the name that are not UTF-8 appear as ``\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# What moves the cursor, colours or retitles a terminal; what changes the order in which letters are shown, or breaks
# lines for some programs alone; and halves of letters, which no encoding can write.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def without_controls(text: str) -> str:
    r"""Text in which control characters and overrides of the writing direction appear as escapes.

    Names of files and what model files say of themselves come from strangers: shown raw, they could colour a terminal,
    overwrite lines and forge verdicts.

    Args:
        text: what is to be shown.

    Example:
        >>> without_controls("a\x1b[2J\nb.png")
        'a\\x1b[2J\\nb.png'
        >>> without_controls("\udc80")
        '\\udc80'
    """
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def result_name(index: int, image: str, suffix: str) -> str:
    """Name of a result file: position in the input, then the image's own stem; no two images share one.

    Example:
        >>> result_name(12, "line 2/photo 1.png", ".npy")
        '000012-photo_1.npy'
    """
    stem = re.sub(r"[^\w.-]", "_", Path(printable(image)).stem)
    if (encoding := sys.getfilesystemencoding()) != "utf-8":  # where the locale says so, names of files are ASCII
        stem = stem.encode(encoding, "replace").decode(encoding).replace("?", "_")
    return f"{index:06d}-{stem[:_LONGEST_STEM]}{suffix}"


def make_folder(folder: Path, option: str = "--out") -> None:
    """Make a folder for results.

    Args:
        option: that names another folder.

    Raises:
        FlawsmithError: a file stands there, or it may not be made or written.
    """
    if os.path.lexists(folder) and not is_folder(folder):
        raise FlawsmithError(f"{folder} is a file: give a folder with {option}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlawsmithError(
            f"{folder} cannot be made ({error.strerror}): give another folder with {option}"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FlawsmithError(f"{folder} may not be written: give another folder with {option}")
