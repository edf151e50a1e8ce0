"""Downloads model packs from where they are published, as a whole or not at all."""

from __future__ import annotations

import email.utils
import importlib
import logging
import os
import shutil
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from .packs import HOME, PACKS, Files, Source, damaged, find_pack, sha256

log = logging.getLogger("facegrad")

CHUNK = 1 << 18


class DownloadError(RuntimeError):
    """A download failed. The text says what to do."""


def download_pack(name: str, root: str | os.PathLike[str] | None = None, *, attempts: int = 5, progress: bool = True) -> Files:
    """Downloads a pack into ``root/models/<name>/`` and returns its files. A pack that is there already is used. If its files
    are not the published ones, they are downloaded again, to the same place.

    After a broken connection the download resumes, up to ``attempts`` times in the same call, and also in the next call. If
    the server asks to wait, it waits. A file is used only if its sha256 is the known one.

    Args:
        name: ``buffalo_l``, ``antelopev2``, ``buffalo_m``, ``buffalo_s``, ``buffalo_sc`` or ``auraface``
        root: InsightFace's folder; default ``~/.insightface``
        attempts: how often a connection is tried
        progress: whether a progress bar is shown on standard error

    Raises:
        DownloadError: no connection, or a file that is not the known one
        ValueError: a name that is not a pack's
    """
    folder = Path(os.fsdecode(root) if root is not None else HOME).expanduser() / "models" / name
    try:
        files = find_pack(name, root)
    except FileNotFoundError:
        pass
    else:
        wrong = damaged(name, files)
        if not wrong:
            return files
        folder = files.detector.parent
        log.warning("%s: not the published files, or damaged: downloaded again", ", ".join(map(str, wrong)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    for source in PACKS[name].sources:
        file = folder.parent / f"{name}-{Path(source.url).name}.part"
        fetch(source, file, attempts=attempts, progress=progress)
        _unpack(file, folder, Path(source.url).name)
    files = find_pack(name, root)
    if wrong := damaged(name, files):
        raise DownloadError(f"{', '.join(map(str, wrong))}: still not the published files; is there a newer facegrad?")
    return files


def fetch(source: Source, file: Path, *, attempts: int = 5, progress: bool = True, pause: float = 1.0) -> None:
    """Downloads ``source`` to ``file`` and checks its sha256. A file that is there already is continued."""
    begun = file.exists()
    _fetch(source.url, file, attempts, progress, pause)
    came = sha256(file)
    if came != source.sha256 and begun:
        # What was there may have been the beginning of something else.
        file.unlink()
        _fetch(source.url, file, attempts, progress, pause)
        came = sha256(file)
    if came != source.sha256:
        file.unlink()
        raise DownloadError(
            f"{source.url}: expected the sha256 {source.sha256}, got {came}; the file was deleted. Run the command again; if it "
            "stays wrong, the file behind the address was replaced: do not use it"
        )


#: Answers after which asking again may help: too slow, too early, too many requests, and the server's own errors.
_TRANSIENT = {408, 425, 429, *range(500, 600)}

#: Seconds that a server may ask to wait for.
_PATIENCE = 600.0


class _Broken(Exception):
    """A connection ended early."""


def _fetch(url: str, file: Path, attempts: int, progress: bool, pause: float) -> None:
    requests, bar = _libraries(progress)
    reason: Exception | None = None
    for attempt in range(attempts):
        wait = pause * 2 ** (attempt - 1) if attempt else 0.0
        if isinstance(reason, requests.HTTPError):
            wait = max(wait, min(_asked_to_wait(reason.response.headers.get("Retry-After")), _PATIENCE))
            log.warning("%s: %s; trying again in %.0f s", url, reason, wait)
        time.sleep(wait)
        try:
            _fetch_rest(requests, bar, url, file)
            return
        except requests.HTTPError as error:
            if error.response.status_code not in _TRANSIENT:
                raise DownloadError(f"{url}: {error}; is there a newer facegrad that knows where the file went?") from error
            reason = error
        except (requests.RequestException, _Broken) as error:
            reason = error
        except OSError as error:
            raise DownloadError(f"{file}: cannot be written: {error.strerror or error}; make room, or give another `root`") from error
    raise DownloadError(
        f"{url}: the connection broke {attempts} times, the last time with: {reason}. What came is kept in {file}; "
        "run the command again to go on"
    ) from reason


def _asked_to_wait(header: str | None) -> float:
    """Seconds from a Retry-After header, a number or a date; 0 where it says nothing."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header or "").timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _fetch_rest(requests: Any, bar: Any, url: str, file: Path) -> None:
    have = file.stat().st_size if file.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, stream=True, headers=headers, timeout=(10, 60)) as response:
        if response.status_code == 416:
            return  # Nothing is left; the sha256 decides whether it is right.
        response.raise_for_status()
        if response.status_code != 206:
            have = 0  # The server starts from the beginning.
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with (
            file.open("ab" if have else "wb") as out,
            bar(total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1024, desc=Path(url).name) as shown,
        ):
            for chunk in response.iter_content(CHUNK):
                out.write(chunk)
                shown.update(len(chunk))
    if total is not None and file.stat().st_size < total:
        raise _Broken(f"the connection ended after {file.stat().st_size} of {total} bytes")


def _unpack(file: Path, folder: Path, name: str) -> None:
    """Puts a downloaded file, or the models in a downloaded zip, into the pack's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # Inside the folder, which may be a link to another disk.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if name.endswith(".zip"):
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    # antelopev2's zip has a folder in it, the others have none.
                    plain = Path(member.filename).name
                    if not member.is_dir() and plain.endswith(".onnx"):
                        with archive.open(member) as source, open(Path(scratch) / plain, "wb") as target:
                            shutil.copyfileobj(source, target)
        else:
            shutil.move(file, Path(scratch) / name)
        for made in Path(scratch).iterdir():
            made.replace(folder / made.name)
    file.unlink(missing_ok=True)


def _libraries(progress: bool) -> tuple[Any, Any]:
    try:
        requests, tqdm = importlib.import_module("requests"), importlib.import_module("tqdm").tqdm
    except ImportError as error:
        raise ImportError("downloads need requests and tqdm: pip install requests tqdm") from error

    def bar(**options: Any) -> Any:
        return tqdm(disable=not progress, **options)

    return requests, bar
