"""A real nginx in front of a service, for the tests: on free ports, with its files in a folder, ended with the test."""

import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterable
from contextlib import closing, suppress
from email.message import Message
from http.client import HTTPSConnection
from pathlib import Path
from types import TracebackType

Pairs = Iterable[tuple[str, str]]

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
OPENSSL = shutil.which("openssl")

# what a distribution's nginx.conf is around a site, with all that could get into its way
_AROUND = """
{user}
daemon off;
pid {folder}/pid;
error_log stderr notice;
events {{ worker_connections 256; }}
http {{
    gzip on;
    gzip_types application/json;
    gzip_min_length 1;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    fastcgi_temp_path {folder}/unused;
    uwsgi_temp_path {folder}/unused;
    scgi_temp_path {folder}/unused;
    include {folder}/site.conf;
}}
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Nginx:
    """Runs a site's configuration, which listens on 443 and hands on to 127.0.0.1:8000, with a certificate of its own."""

    def __init__(self, site: str, folder: Path, service_port: int) -> None:
        self.port = free_port()
        self.log = folder / "access.log"
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        _certify(certificate, key)
        self.tls = ssl.create_default_context(cafile=str(certificate))
        own = {
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
            "listen [::]:443 ssl;": "",
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{service_port};",
        }
        for written, instead in own.items():
            assert site.count(written) == 1, written
            site = site.replace(written, instead)
        for directive, path in (("ssl_certificate", certificate), ("ssl_certificate_key", key), ("access_log", self.log)):
            site, found = re.subn(rf"^(\s*{directive}) [^ ;]+", rf"\1 {path}", site, flags=re.MULTILINE)
            assert found == 1, directive
        (folder / "site.conf").write_text(site)
        # it would become somebody who may not look into the folder
        user = "user root;" if os.geteuid() == 0 else ""
        self._configuration = folder / "nginx.conf"
        self._configuration.write_text(_AROUND.format(user=user, folder=folder))
        self._command = [NGINX or "nginx", "-p", str(folder), "-c", str(self._configuration), "-e", "stderr"]

    def verdict(self) -> str:
        """What `nginx -t` says."""
        return subprocess.run([*self._command, "-t"], capture_output=True, text=True, timeout=10).stderr

    def __enter__(self) -> "Nginx":
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            # it listens before it has workers
            if "start worker process " in line:
                return self
        raise AssertionError(f"nginx did not start: {''.join(said)}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        _, said = self._process.communicate(timeout=10)
        assert "temporary file" not in said, said

    def ask(
        self, method: str, path: str, headers: Pairs = (), body: bytes | None = None, source: str = "127.0.0.1"
    ) -> tuple[int, Message, bytes]:
        """The answer to one request, on a connection of its own from the address `source`; no header in it twice."""
        own = {"source_address": (source, 0), "timeout": 10, "context": self.tls}
        with closing(HTTPSConnection("127.0.0.1", self.port, **own)) as connection:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            with suppress(ConnectionError):
                # an answer may come before the end of a body that nobody wants
                connection.send(body or b"")
            response = connection.getresponse()
            names = [name.lower() for name in response.headers]
            assert len(names) == len(set(names)), names
            return response.status, response.headers, response.read()

    def connect(self) -> ssl.SSLSocket:
        """A connection for what no client of HTTP would send."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        return self.tls.wrap_socket(plain, server_hostname="127.0.0.1")


def _certify(certificate: Path, key: Path) -> None:
    """A certificate for 127.0.0.1 that nobody has signed but its own key."""
    command = [OPENSSL or "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    whose = ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, *whose, "-keyout", str(key), "-out", str(certificate)], capture_output=True, timeout=10, check=True
    )
