"""Real downloads, from a server on the loopback address."""

import hashlib
import http.server
import io
import threading
import zipfile
from pathlib import Path

import pytest

from charlm_jax.data import corpus as module
from charlm_jax.data.corpus import DATA_FOLDER_VARIABLE, Download, load_corpus
from charlm_jax.errors import InputError

TEXT = b"served text\r\n"


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("served", TEXT)
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve `/served.txt` and `/served.zip`, and record the requests."""
    files = {"/served.txt": TEXT, "/served.zip": archive()}
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[self.path])))
            self.end_headers()
            self.wfile.write(files[self.path])

        def log_message(self, format, *args):
            pass

    monkeypatch.delenv(DATA_FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()

        def offer(path, **hashes):
            url, file = f"http://127.0.0.1:{httpd.server_address[1]}{path}", Path(path).name.removesuffix(".zip")
            monkeypatch.setitem(module.DOWNLOADS, "served", Download(url, file, **hashes))
            return requests

        yield offer
        httpd.shutdown()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("path", ["/served.txt", "/served.zip"])
def test_a_corpus_is_downloaded_once(server, path, tmp_path):
    requests = server(path, sha256=sha256(TEXT), zip_sha256=sha256(archive()) if path == "/served.zip" else None)
    assert load_corpus("served").text == load_corpus("served").text == "served text\n"
    for file in (tmp_path / "cache").rglob("served"):  # half unpacked by a process that was killed
        file.write_bytes(TEXT[:3])
    assert load_corpus("served").text == "served text\n"
    assert len(requests) == 1
    assert (tmp_path / "cache" / "charlm_jax").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("path", "wrong"), [("/served.txt", "sha256"), ("/served.zip", "zip_sha256")])
def test_a_download_with_another_hash_is_refused(server, path, wrong):
    server(path, **{"sha256": sha256(TEXT), wrong: "0" * 64})
    with pytest.raises(InputError, match=r"does not serve the published served \(SHA-256 0{64}\)"):
        load_corpus("served")
