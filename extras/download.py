# SPDX-License-Identifier: MIT
"""Fetching a package over HTTP, going on where it stopped, and unpacking it safely.

Nothing that is there already is replaced or deleted; archives are kept.
"""

import gzip
import json
import os
import shutil
import tarfile
import tempfile
import time
import zipfile
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from extras.rawfiles import PrepError

BLOCK = 1 << 18  # bytes
TIMEOUT = 30  # seconds without a byte
TRIES = 3  # in a row that bring nothing, then the next address
PAUSE = 2  # seconds between two of them
EVERY = 5  # seconds between two lines of progress
MB = 1e6


@dataclass(frozen=True)
class Source:
    """An address of a package."""

    url: str
    folder: str  # what the archive unpacks to
    kept_as: str = ""  # name of the archive here; the address's own if that is empty

    @property
    def name(self):
        return self.kept_as or PurePosixPath(urlsplit(self.url).path).name


class NoFile(Exception):
    """An address does not give the file; another may."""


class BrokenOff(Exception):
    """The connection failed; trying again may help."""


# ------------------------------------------------------------------------------- several addresses
def fetch_package(sources, folder, command):
    """The first of the sources that gives its archive, unpacked into `folder`.

    command: what to type after a download by hand.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        archive = find_kept(sources, folder) or fetch_first(sources, folder, command)
        unpack(archive, folder)
    except OSError as error:  # of this disk; the network's are caught before
        raise PrepError(f"{folder}: cannot be written: {error}") from error


def find_kept(sources, folder):
    """An archive that was fetched before; None if there is none."""
    for source in sources:
        archive = folder / source.name
        if archive.exists():
            print(f"{archive} is there already: unpacking it", flush=True)
            return archive
    return None


def fetch_first(sources, folder, command):
    """-> the archive of the first address that gives one."""
    tried = []
    for source in sources:
        if (folder / source.folder).exists():
            tried.append(f"{source.url}: {folder / source.folder} is there already, move it away")
            continue
        print(f"fetching {source.url}", flush=True)
        try:
            fetch(source.url, folder / source.name)
            return folder / source.name
        except NoFile as error:
            print(f"no: {error}", flush=True)
            tried.append(f"{source.url}: {error}")

    raise PrepError(
        f"no address gave the package ({'; '.join(tried)}): "
        f"get it by hand, unpack it into {folder} and type {command}"
    )


# ------------------------------------------------------------------------------------- one address
@dataclass
class Partial:
    """A download that is under way: its bytes, and in a note beside them what they are of."""

    path: Path
    note: Path

    def size(self):
        return self.path.stat().st_size if self.path.exists() else 0

    def validator(self, url):
        """What the server called the file that these bytes are of; "" if that is not known."""
        try:
            note = json.loads(self.note.read_text())
            return note["validator"] if note["url"] == url else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def remember(self, url, headers):
        note = {"url": url, "validator": strong_validator(headers)}
        self.note.write_text(json.dumps(note))


def strong_validator(headers):
    """What If-Range may name (RFC 9110, 13.1.5): a strong ETag, or the date of the last change."""
    tag = headers.get("ETag", "")
    if tag.startswith('"'):
        return tag
    return headers.get("Last-Modified", "")


def fetch(url, path):
    """The file at the address -> path. Broken off, it goes on where it stopped, today or later."""
    partial = Partial(path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json"))
    failures = 0
    while True:
        before = partial.size()
        try:
            fetch_rest(url, partial)
            break
        except BrokenOff as error:
            failures = failures + 1 if partial.size() <= before else 0
            if failures == TRIES:
                raise NoFile(f"{error}, {TRIES} times") from error
            print(f"{error} after {partial.size() / MB:.0f} MB: trying again", flush=True)
            time.sleep(PAUSE)

    os.replace(partial.path, path)
    partial.note.unlink(missing_ok=True)


def fetch_rest(url, partial):
    """What is missing of the partial file; all of it where the server has another file by now."""
    validator = partial.validator(url)
    start = partial.size() if validator else 0
    headers = {"User-Agent": "mtcd data_prep.py", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        headers["If-Range"] = validator

    with open_address(Request(url, headers=headers)) as response:
        goes_on = response.status == 206 and first_byte(response.headers) == start
        if start and not goes_on:
            print("the server sends it from the start", flush=True)
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        refuse_small_disk(partial.path.parent, total, start)

        first = read_block(response)
        if start == 0 and first.lstrip().startswith(b"<"):
            raise NoFile("a web page, not an archive")
        partial.remember(url, response.headers)
        with open(partial.path, "ab" if goes_on and start else "wb") as file:
            report = Report(partial.path.name.removesuffix(".part"), start, total)
            block = first
            while block:
                file.write(block)
                report.add(len(block))
                block = read_block(response)

    if total is not None and partial.size() < total:
        raise BrokenOff("the connection broke off")
    report.end()


def open_address(request):
    try:
        return urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:  # more is here than the server has: begin anew
            request.remove_header("Range")
            request.remove_header("If-range")
            return open_address(request)
        if error.code >= 500 or error.code == 429:
            raise BrokenOff(f"the server answers {error.code} {error.reason}") from error
        raise NoFile(f"the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise BrokenOff(f"no connection ({getattr(error, 'reason', error)})") from error


def read_block(response):
    try:
        return response.read(BLOCK)
    except (OSError, HTTPException) as error:
        raise BrokenOff("the connection broke off") from error


def first_byte(headers):
    """Of an answer 206: "bytes 100-199/200" -> 100; -1 where that is not to be read."""
    start = headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    return int(start) if start.isdecimal() else -1


def refuse_small_disk(folder, total, start):
    free = shutil.disk_usage(folder).free
    if total is not None and total - start > free:
        raise PrepError(
            f"{folder}: the archive needs {(total - start) / MB:.0f} MB, "
            f"{free / MB:.0f} MB are free; name another folder with --raw"
        )


class Report:
    """Prints now and then how far a download or an archive is, how fast, and the time left."""

    def __init__(self, what, done=0, total=None):
        self.what = what
        self.first = done
        self.done = done
        self.total = total
        self.start = time.monotonic()
        self.spoken = self.start

    def add(self, size):
        self.done += size
        if time.monotonic() > self.spoken + EVERY:
            self.speak()

    def speak(self):
        self.spoken = time.monotonic()
        rate = (self.done - self.first) / max(self.spoken - self.start, 1e-9)
        text = f"{self.what} {self.done / MB:.0f}"
        if self.total:
            left = (self.total - self.done) / max(rate, 1)
            text += f" of {self.total / MB:.0f} MB, {rate / MB:.1f} MB/s, {clock(left)} left"
        else:
            text += f" MB, {rate / MB:.1f} MB/s"
        print(text, flush=True)

    def end(self):
        self.speak()


def clock(seconds):
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


# ---------------------------------------------------------------------------------------- archives
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    UnicodeError,
    NotImplementedError,
    RuntimeError,
)


def unpack(archive, folder):
    """A tar or zip archive into `folder`, all of it or nothing.

    It is unpacked into a folder of its own first. An archive that names a place outside, or holds
    links or devices, is refused as a whole.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as own:
            if zipfile.is_zipfile(archive):
                unpack_zip(archive, own)
            elif tarfile.is_tarfile(archive):
                unpack_tar(archive, own)
            else:
                raise PrepError(f"{archive} is no tar or zip archive: move it away, then try again")
            move_content(Path(own), folder)
    except DAMAGE as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise PrepError(
            f"{archive} is damaged ({what}): move it away and it is fetched again"
        ) from error


def unpack_tar(archive, own):
    with open(archive, "rb") as raw, tarfile.open(fileobj=raw) as members:
        if hasattr(tarfile, "data_filter"):  # since Python 3.11.4; a second guard
            members.extraction_filter = tarfile.data_filter
        report = Report(f"unpacking {archive.name}", 0, archive.stat().st_size)
        for member in members:
            refuse_outside(archive, member.name)
            if not (member.isfile() or member.isdir()):
                raise PrepError(f"{archive} holds {member.name}, a link or a device: not unpacked")
            member.mode = 0o755 if member.isdir() else 0o644
            members.extract(member, own, set_attrs=False)
            report.add(raw.tell() - report.done)
        while members.fileobj.read(BLOCK):  # to its end, where gzip keeps the checksum
            pass
        report.end()


def unpack_zip(archive, own):
    with zipfile.ZipFile(archive) as members:
        infos = members.infolist()
        report = Report(f"unpacking {archive.name}", 0, sum(info.file_size for info in infos))
        for info in infos:
            refuse_outside(archive, info.filename)
            if (info.external_attr >> 16) & 0o170000 == 0o120000:  # S_IFLNK
                raise PrepError(f"{archive} holds {info.filename}, a link: not unpacked")
            members.extract(info, own)
            report.add(info.file_size)
        report.end()


def refuse_outside(archive, name):
    """A name that leads out of the folder that the archive is unpacked into, on any system."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.drive or path.root or ".." in path.parts:
            raise PrepError(f"{archive} holds {name!r}, a place outside its folder: not unpacked")


def move_content(own, folder):
    entries = sorted(own.iterdir())
    if not entries:
        raise PrepError(f"{folder}: the archive is empty")
    for entry in entries:
        if (folder / entry.name).exists():
            raise PrepError(
                f"{folder / entry.name} is there already and is not replaced: move it away"
            )
    for entry in entries:
        os.rename(entry, folder / entry.name)
        print(f"unpacked to {folder / entry.name}")
