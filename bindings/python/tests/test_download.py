"""Downloads from a server that breaks off, lies, and works."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from facegrad import packs
from facegrad.__main__ import main
from facegrad.download import DownloadError, download_pack, fetch


class Server:
    """Serves files from memory; ``breaks`` times it hangs up in the middle."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.breaks = 0
        #: Statuses and Retry-After headers of the next answers.
        self.refusals: list[tuple[int, str | None]] = []
        self.requests: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                data, given = outer.files.get(self.path), self.headers.get("Range")
                outer.requests.append(given)
                if outer.refusals:
                    status, after = outer.refusals.pop(0)
                    self.send_response(status)
                    if after is not None:
                        self.send_header("Retry-After", after)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if data is None:
                    self.send_error(404)
                    return
                start = int(given.removeprefix("bytes=").rstrip("-")) if given else 0
                if start >= len(data) and given:
                    self.send_error(416)
                    return
                self.send_response(206 if given else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                end = len(data)
                if outer.breaks:
                    outer.breaks -= 1
                    end = start + (len(data) - start) // 2
                self.wfile.write(data[start:end])
                self.close_connection = True

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def start(self, request: int) -> int:
        """The first byte that a request asked for."""
        given = self.requests[request]
        assert given is not None
        return int(given.removeprefix("bytes=").rstrip("-"))

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture()
def server():
    made = Server()
    yield made
    made.close()


def source(server: Server, path: str, data: bytes) -> packs.Source:
    server.files[path] = data
    return packs.Source(server.url + path, hashlib.sha256(data).hexdigest())


def archive(folder: str = "") -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as zip:
        for name in ("det_500m.onnx", "w600k_mbf.onnx", "../evil.onnx", "readme.txt"):
            zip.writestr(folder + name, name * 1000)
    return data.getvalue()


@pytest.mark.parametrize("folder", ["", "buffalo_sc/"])
def test_a_pack_is_unpacked_into_its_place(server, tmp_path, monkeypatch, capfd, folder):
    pack = packs.PACKS["buffalo_sc"]
    zipped = source(server, "/buffalo_sc.zip", archive(folder))
    monkeypatch.setitem(packs.PACKS, "buffalo_sc", packs.Pack(pack.name, pack.detector, pack.recogniser, pack.licence, (zipped,)))
    assert main(["download", "buffalo_sc", "--root", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert "non-commercial research" in out and "100%" in err
    inside = tmp_path / "models/buffalo_sc"
    assert sorted(p.name for p in inside.iterdir()) == ["det_500m.onnx", "evil.onnx", "w600k_mbf.onnx"]
    assert not (tmp_path / "models/evil.onnx").exists() and [p.name for p in (tmp_path / "models").iterdir()] == ["buffalo_sc"]
    assert packs.find_pack("buffalo_sc", tmp_path).detector.read_text() == "det_500m.onnx" * 1000
    # What is there is not asked for again.
    asked = len(server.requests)
    assert download_pack("buffalo_sc", tmp_path).detector.is_file() and len(server.requests) == asked


def test_a_broken_connection_is_taken_up(server, tmp_path):
    data = bytes(range(256)) * 4000
    wanted = source(server, "/model.onnx", data)
    server.breaks = 2
    fetch(wanted, tmp_path / "model.part", progress=False, pause=0.01)
    assert (tmp_path / "model.part").read_bytes() == data
    assert server.requests[0] is None and 0 < server.start(1) < server.start(2) < len(data)


def test_the_next_call_goes_on_where_the_last_broke_off(server, tmp_path):
    data = bytes(range(256)) * 4000
    wanted = source(server, "/model.onnx", data)
    server.breaks = 2
    with pytest.raises(DownloadError, match="broke 2 times.*run the command again"):
        fetch(wanted, tmp_path / "model.part", attempts=2, progress=False, pause=0.01)
    fetch(wanted, tmp_path / "model.part", progress=False)
    assert (tmp_path / "model.part").read_bytes() == data and server.start(-1) > server.start(1) > 0
    # A file that is whole already is only checked.
    fetch(wanted, tmp_path / "model.part", progress=False)


def test_a_wrong_hash_is_refused_and_leaves_nothing(server, tmp_path, monkeypatch, capfd):
    pack = packs.PACKS["auraface"]
    server.files["/glintr100.onnx"] = b"something else"
    lie = packs.Source(server.url + "/glintr100.onnx", "0" * 64)
    monkeypatch.setitem(packs.PACKS, "auraface", packs.Pack(pack.name, pack.detector, pack.recogniser, pack.licence, (lie,)))
    assert main(["download", "auraface", "--root", str(tmp_path), "--quiet"]) == 3
    out, err = capfd.readouterr()
    assert "Apache-2.0" in out and "expected the sha256 000" in err and "%" not in err
    assert not list((tmp_path / "models").iterdir())


def test_a_file_that_is_gone_is_not_asked_for_again(server, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        fetch(packs.Source(server.url + "/nothing", "0" * 64), tmp_path / "x.part", progress=False)
    assert len(server.requests) == 1


def test_no_server_is_told(tmp_path):
    nobody = packs.Source("http://127.0.0.1:9/x.zip", "0" * 64)
    with pytest.raises(DownloadError, match="broke 2 times"):
        fetch(nobody, tmp_path / "x.part", attempts=2, progress=False, pause=0.01)


def test_the_known_hashes_are_hashes():
    sources = [source for pack in packs.PACKS.values() for source in pack.sources]
    for digest in [source.sha256 for source in sources] + list(packs.KNOWN_FILES):
        assert len(bytes.fromhex(digest)) == 32
