"""Packs from where they are published, whole or not at all."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from .packs import HOME, PACKS, Files, Source, find_pack, sha256

CHUNK = 1 << 18


class DownloadError(RuntimeError):
    """A download that did not end well; the text says what to do."""


def download_pack(name: str, root: str | os.PathLike[str] | None = None, *, attempts: int = 5, progress: bool = True) -> Files:
    """Downloads a pack into ``root/models/<name>/`` and returns its files; one that is there is left alone.

    A broken connection is taken up where it broke, in the same call up to ``attempts`` times and in the next call as
    well. What came is used only where its sha256 is the known one.

    Args:
        name: ``buffalo_l``, ``antelopev2``, ``buffalo_m``, ``buffalo_s``, ``buffalo_sc``, ``auraface``
        root: default ``~/.insightface``
        attempts: how often a connection is tried
        progress: whether a bar is shown on standard error

    Raises:
        DownloadError: no connection, or a file that is not the known one
        ValueError: a name that is not a pack's
    """
    try:
        return find_pack(name, root)
    except FileNotFoundError:
        pass
    models = Path(root if root is not None else HOME).expanduser() / "models"
    models.mkdir(parents=True, exist_ok=True)
    for source in PACKS[name].sources:
        file = models / f"{name}-{Path(source.url).name}.part"
        fetch(source, file, attempts=attempts, progress=progress)
        _unpack(file, models / name, Path(source.url).name)
    return find_pack(name, root)


def fetch(source: Source, file: Path, *, attempts: int = 5, progress: bool = True, pause: float = 1.0) -> None:
    """Downloads ``source`` to ``file``, going on with what is there already, and checks it."""
    requests, bar = _libraries(progress)
    reason: Exception | None = None
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _fetch_rest(requests, bar, source.url, file)
            break
        except requests.HTTPError as error:
            # The server has answered; asking again will not change what it says, unless it is overloaded.
            if error.response is not None and error.response.status_code < 500:
                raise DownloadError(f"{source.url}: {error}; is there a newer facegrad that knows where the file went?") from error
            reason = error
        except (requests.RequestException, OSError) as error:
            reason = error
    else:
        raise DownloadError(
            f"{source.url}: the connection broke {attempts} times, the last time with: {reason}. What came is kept in {file}; "
            "run the command again to go on"
        ) from reason
    came = sha256(file)
    if came != source.sha256:
        file.unlink()
        raise DownloadError(
            f"{source.url}: expected the sha256 {source.sha256}, got {came}; the file was deleted. Run the command again; if it "
            "stays wrong, the file behind the address was replaced: do not use it"
        )


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
        with file.open("ab" if have else "wb") as out, bar(
            total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1024, desc=Path(url).name
        ) as shown:
            for chunk in response.iter_content(CHUNK):
                out.write(chunk)
                shown.update(len(chunk))
    if total is not None and file.stat().st_size < total:
        raise OSError(f"the connection ended after {file.stat().st_size} of {total} bytes")


def _unpack(file: Path, folder: Path, name: str) -> None:
    """Puts a downloaded file, or the models in a downloaded zip, into the pack's folder."""
    folder.mkdir(exist_ok=True)
    if not name.endswith(".zip"):
        file.replace(folder / name)
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            # antelopev2's zip has a folder in it, the others have none.
            plain = Path(member.filename).name
            if not member.is_dir() and plain.endswith(".onnx"):
                with archive.open(member) as source, open(Path(scratch) / plain, "wb") as target:
                    shutil.copyfileobj(source, target)
        for made in Path(scratch).iterdir():
            made.replace(folder / made.name)
    file.unlink()


def _libraries(progress: bool) -> tuple[Any, Any]:
    try:
        requests, tqdm = importlib.import_module("requests"), importlib.import_module("tqdm").tqdm
    except ImportError as error:
        raise ImportError("downloads need requests and tqdm: pip install 'facegrad[tools]'") from error

    def bar(**options: Any) -> Any:
        return tqdm(disable=not progress, **options)

    return requests, bar
