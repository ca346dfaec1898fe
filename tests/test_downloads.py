"""Real downloads, from a server of this test's own on the loopback address."""

import hashlib
import http.server
import io
import threading
import zipfile

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
    """Serve `/served.txt` and `/served.zip`; count the requests."""
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

        def offer(path, file, sha256=None):
            url = f"http://127.0.0.1:{httpd.server_address[1]}{path}"
            digest = hashlib.sha256(files[path]).hexdigest()
            text_digest = hashlib.sha256(TEXT).hexdigest()
            monkeypatch.setitem(module.DOWNLOADS, "served", Download(url, sha256 or digest, file, text_digest))
            return requests

        yield offer
        httpd.shutdown()


@pytest.mark.parametrize(("path", "file"), [("/served.txt", "served.txt"), ("/served.zip", "served")])
def test_a_corpus_is_downloaded_once(server, path, file, tmp_path):
    requests = server(path, file)
    assert load_corpus("served").text == load_corpus("served").text == "served text\n"
    assert len(requests) == 1
    assert (tmp_path / "cache" / "charlm_jax").stat().st_mode & 0o777 == 0o700


def test_a_download_with_another_hash_is_refused(server):
    server("/served.txt", "served.txt", sha256="0" * 64)
    with pytest.raises(InputError, match="is not the published served"):
        load_corpus("served")
