"""Getting the public data sets: addresses, hashes, licences, and pages where a form or a click stands before the data.

Nothing is fetched unless it is asked for by name and the licence has been accepted.
"""

from __future__ import annotations

import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flawsmith.runtime.errors import FlawsmithError
from flawsmith.runtime.files import make_folder
from flawsmith.runtime.outputs import locked_file

_CC_BY_NC_SA = "CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/): not for commercial use."
_MIT_OF_MVTEC = f"MIT, as the repository says (https://mit-license.org/); its images are of MVTec AD: {_CC_BY_NC_SA}"
_MVTEC_FORM = "The page asks for a form before it gives the archive."
_BY_HAND = "The page gives it by a click, not by a plain address."
_BLOCK = 2**20


@dataclass(frozen=True)
class Download:
    """A public data set as its authors give it.

    Attributes:
        key: its name here, as :mod:`flawsmith.data.public_sets` has it.
        name: as its authors call it.
        page: where they offer it.
        licence: what it may be used for, in a sentence, with the text's address.
        archive: name of the file.
        address: of the archive; None: the page wants a form or a click first.
        hash: of the archive, ``sha256:...`` or ``md5:...``; None: none is published.
        hash_from: where the hash is published.
        folder: into which the archive is unpacked, where it has none of its own at the top; "": it has.
        why: why there is no address.
    """

    key: str
    name: str
    page: str
    licence: str
    archive: str
    address: str | None = None
    hash: str | None = None
    hash_from: str = ""
    folder: str = ""
    why: str = ""

    def terms(self) -> list[str]:
        """What has to be known before it is fetched, as lines."""
        checked = f"checked against {self.hash_from}" if self.hash else "no hash is published, so none is checked"
        return [f"{self.name}, {self.page}", f"licence: {self.licence}", f"archive: {self.archive}, {checked}"]


_ANOMALIB = "the hash in anomalib"
DOWNLOADS: Mapping[str, Download] = {
    each.key: each
    for each in (
        Download(
            key="mvtec",
            name="MVTec AD",
            page="https://www.mvtec.com/company/research/datasets/mvtec-ad/downloads",
            licence=_CC_BY_NC_SA,
            archive="mvtec_anomaly_detection.tar.xz",
            hash="sha256:cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
            hash_from=_ANOMALIB,
            folder="mvtec",
            why=_MVTEC_FORM,
        ),
        Download(
            key="mvtec_loco",
            name="MVTec LOCO AD",
            page="https://www.mvtec.com/company/research/datasets/mvtec-loco/downloads",
            licence=_CC_BY_NC_SA,
            archive="mvtec_loco_anomaly_detection.tar.xz",
            hash="md5:d40f092ac6f88433f609583c4a05f56f",
            hash_from=_ANOMALIB,
            folder="mvtec_loco",
            why=_MVTEC_FORM,
        ),
        Download(
            key="mvtec_3d",
            name="MVTec 3D-AD",
            page="https://www.mvtec.com/company/research/datasets/mvtec-3d-ad/downloads",
            licence=_CC_BY_NC_SA,
            archive="mvtec_3d_anomaly_detection.tar.xz",
            hash="md5:d8bb2800fbf3ac88e798da6ae10dc819",
            hash_from=_ANOMALIB,
            folder="mvtec_3d",
            why=_MVTEC_FORM,
        ),
        Download(
            key="visa",
            name="VisA",
            page="https://github.com/amazon-science/spot-diff",
            licence="CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/).",
            archive="VisA_20220922.tar",
            address="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
            hash="md5:ef908989b6dc701fc218f643c127a4de",
            hash_from=_ANOMALIB,
            folder="visa",
        ),
        Download(
            key="btad",
            name="BTAD",
            page="https://github.com/pankajmishra000/VT-ADL",
            licence=_CC_BY_NC_SA,
            archive="btad.zip",
            address="https://avires.dimi.uniud.it/papers/btad/btad.zip",
            hash="sha256:461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
            hash_from=_ANOMALIB,
        ),
        Download(
            key="ksdd2",
            name="KolektorSDD2",
            page="https://www.vicos.si/resources/kolektorsdd2/",
            licence=_CC_BY_NC_SA,
            archive="KolektorSDD2.zip",
            address="https://go.vicos.si/kolektorsdd2",
            folder="ksdd2",
        ),
        Download(
            key="dtd",
            name="Describable Textures Dataset",
            page="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
            licence="for research, as its page says (https://www.robots.ox.ac.uk/~vgg/data/dtd/).",
            archive="dtd-r1.0.1.tar.gz",
            address="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            hash="md5:fff73e5086ae6bdbea199a49dfb8a4c1",
            hash_from="the hash in torchvision",
        ),
        Download(
            key="mpdd",
            name="MPDD",
            page="https://github.com/stepanje/MPDD",
            licence=_CC_BY_NC_SA,
            archive="MPDD.zip",
            why=_BY_HAND,
        ),
        Download(
            key="wfdd",
            name="WFDD",
            page="https://github.com/cqylunlun/GLASS#dataset-release",
            licence="MIT, as the repository says (https://mit-license.org/).",
            archive="WFDD.zip",
            why=_BY_HAND,
        ),
        Download(
            key="mad_man",
            name="MAD-man",
            page="https://github.com/cqylunlun/GLASS#dataset-release",
            licence=_MIT_OF_MVTEC,
            archive="MAD-man.zip",
            why=_BY_HAND,
        ),
        Download(
            key="mad_sys",
            name="MAD-sys",
            page="https://github.com/cqylunlun/GLASS#dataset-release",
            licence=_MIT_OF_MVTEC,
            archive="MAD-sys.zip",
            why=_BY_HAND,
        ),
        Download(
            key="magnetic_tile",
            name="magnetic tile surface defects",
            page="https://github.com/abin24/Magnetic-tile-defect-datasets.",
            licence="none is stated; the authors ask to be cited.",
            archive="Magnetic-tile-defect-datasets.-master.zip",
            why=_BY_HAND,
        ),
    )
}  # fmt: skip


def find_download(name: str) -> Download:
    """A data set by its name here.

    Raises:
        FlawsmithError: there is none, with the closest name.

    Example:
        >>> find_download("visa").licence
        'CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/).'
    """
    key = {"mvtec_ad": "mvtec", "loco": "mvtec_loco"}.get(name, name)
    if key not in DOWNLOADS:
        close = get_close_matches(key, DOWNLOADS, 1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise FlawsmithError(f"no data set is called {name!r}{hint}: there are {', '.join(DOWNLOADS)}")
    return DOWNLOADS[key]


def download(
    name: str,
    to: str | Path,
    *,
    accept_licence: bool = False,
    on_bytes: Callable[[int, int | None], object] = lambda done, total: None,
) -> Path:
    """Fetch a public data set, check it, and unpack it.

    What was fetched before an interruption is kept, and the next call goes on from there. An archive that lies in the
    folder already is taken as it is: so a set whose page wants a form is checked and unpacked too.

    Args:
        name: of the set, such as ``visa``.
        to: the folder that holds data sets; made if missing.
        accept_licence: whether its licence was read and accepted; without it nothing is fetched.
        on_bytes: is told how many bytes are there, and of how many; None: not known.

    Returns:
        The folder that the archive was unpacked into.

    Raises:
        FlawsmithError: no such set, its licence was not accepted, a page wants a form, the address cannot be reached,
            the archive is not the published one, or the folder cannot be written.
    """
    return _download(find_download(name), Path(to), accept_licence=accept_licence, on_bytes=on_bytes)


def _download(
    chosen: Download, to: Path, *, accept_licence: bool, on_bytes: Callable[[int, int | None], object]
) -> Path:
    if not accept_licence:
        raise FlawsmithError(
            f"{chosen.name}: its licence has to be accepted first: {chosen.licence} Read it, and add --accept-licence"
        )
    make_folder(to, "--to")
    with locked_file(to / f".{chosen.archive}.lock") as is_free:
        if not is_free:
            raise FlawsmithError(f"{to / chosen.archive} is being fetched by another command: wait until it has ended")
        return _fetch_and_unpack(chosen, to, on_bytes)


def _fetch_and_unpack(chosen: Download, to: Path, on_bytes: Callable[[int, int | None], object]) -> Path:
    archive, target = to / chosen.archive, to / chosen.folder
    if chosen.folder and target.exists() and any(target.iterdir()):
        raise FlawsmithError(f"{target} is there already: remove it, or give another folder with --to")
    if chosen.address is None and not archive.exists():
        raise FlawsmithError(
            f"{chosen.name} cannot be fetched by a program. {chosen.why} Get {chosen.archive} from {chosen.page}, put "
            f"it into {to}, and give the same command again: it is checked and unpacked"
        )
    _fetch(chosen, archive, on_bytes)
    return _unpack(archive, target)


def _fetch(chosen: Download, archive: Path, on_bytes: Callable[[int, int | None], object]) -> None:
    """Have the archive in its place, with the published hash.

    Raises:
        FlawsmithError: it cannot be had, or is another file.
    """
    import pooch

    if archive.exists() and chosen.hash is None:
        return
    address = chosen.address or archive.as_uri()
    try:
        pooch.retrieve(
            url=address,
            known_hash=chosen.hash,
            fname=archive.name,
            path=archive.parent,
            downloader=_Resuming(archive.with_name(f"{archive.name}.part"), on_bytes),
        )
    except ValueError as error:
        if "hash" not in str(error):
            raise
        raise FlawsmithError(
            f"{archive.name} is not the published file: its hash is not {chosen.hash}; remove it and try again, or "
            f"look at {chosen.page}"
        ) from None
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise FlawsmithError(
            f"{address} cannot be fetched ({reason}): the same command goes on where it was; or get {archive.name} "
            f"from {chosen.page} and put it into {archive.parent}"
        ) from None


class _Resuming:
    """A downloader for pooch that goes on with what an earlier try has left.

    Args:
        part: where the bytes go until all are there.
        on_bytes: is told how many there are, and of how many.
    """

    def __init__(self, part: Path, on_bytes: Callable[[int, int | None], object]) -> None:
        self.part, self.on_bytes = part, on_bytes

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> None:
        there = self.part.stat().st_size if self.part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
        try:
            response = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not there:  # nothing is left to fetch
                raise
        else:
            with response:
                self._write(response, there if response.status == 206 else 0)
        shutil.move(self.part, output_file)

    def _write(self, response: Any, done: int) -> None:
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        with self.part.open("ab" if done else "wb") as file:
            while block := _read(response):
                file.write(block)
                done += len(block)
                self.on_bytes(done, total)
        if total is not None and done < total:
            raise OSError(f"the connection ended after {done:,} of {total:,} bytes")


def _read(response: Any) -> bytes:
    """The next bytes; of a connection that broke off those that came."""
    try:
        return bytes(response.read(_BLOCK))
    except http.client.IncompleteRead as error:
        return error.partial


def _unpack(archive: Path, target: Path) -> Path:
    """Unpack an archive; it writes nothing outside the folder.

    Raises:
        FlawsmithError: it is damaged, of a kind that is not read, or the disk is full; or Python is too old.
    """
    zipped = zipfile.is_zipfile(archive)
    if not zipped and not hasattr(tarfile, "data_filter"):  # nothing else keeps an archive within its folder
        raise FlawsmithError(f"{archive}: needs Python 3.10.12 or later to be unpacked; unpack it to {target} by hand")
    make_folder(target, "--to")
    try:
        if zipped:
            with zipfile.ZipFile(archive) as packed_zip:
                packed_zip.extractall(target)
        else:
            with tarfile.open(archive) as packed:
                packed.extraction_filter = tarfile.data_filter
                packed.extractall(target)
                while packed.fileobj is not None and packed.fileobj.read(_BLOCK):
                    pass  # up to the check sum, which stands behind the archive's own end
    except Exception as error:  # the readers of archives answer odd bytes with many exceptions, those of each codec too
        raise FlawsmithError(f"{archive}: cannot be unpacked ({error}); remove it and fetch it again") from None
    return target
