"""A hub on this machine: a real HTTP server that speaks as much of the hub's API as its clients need.

Clients are pointed at it by HF_ENDPOINT (or `endpoint=`). Faults lie in wait for the next requests of a path.
"""

import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_push import Pushes

API = re.compile(
    r"/api/(models|datasets)/(?P<id>.+?)(?:/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?"
)
FILE = re.compile(r"/(?P<room>datasets/)?(?P<id>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Stored:
    """A repository: its files and whether a token is asked for. The commit is a digest of the files."""

    kind: str
    id: str
    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    large: frozenset[str] = frozenset()  # kept by sha256, as LFS files are
    history: dict[str, dict[str, bytes]] = field(default_factory=dict)  # files of earlier commits
    said: dict[str, Any] = field(default_factory=dict)  # more that the hub says of it: cardData, tags, safetensors

    @property
    def commit(self) -> str:
        digests = {name: sha256(data) for name, data in sorted(self.files.items())}
        return hashlib.sha1(repr(digests).encode()).hexdigest()

    def push(self, **files: bytes) -> None:
        """A new commit with other contents; the earlier one can still be had by its id."""
        self.history[self.commit] = dict(self.files)
        self.files.update({name.replace("__", "."): data for name, data in files.items()})

    def at(self, commit: str) -> "Stored":
        return replace(self, files=self.history[commit], history={})

    def entry(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"size": len(data), "oid": blob, "blobId": blob}
        if name in self.large:
            entry["lfs"] = {
                "sha256": sha256(data),
                "oid": sha256(data),
                "size": len(data),
                "pointerSize": 134,
            }
        return entry


@dataclass
class Fault:
    path: str  # a part of the path and query of the requests it hits
    status: int = 0  # 0: the answer is right, but breaks off
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    breaks_after: int = 0  # bytes of the body
    holds: threading.Event | None = (
        None  # nothing more comes until it is set: instead of breaking off, or of what is sent being taken
    )
    times: int = 1
    ignores_range: bool = False
    drips: float = 0  # seconds between two pieces of the body
    cuts: int = 0  # bytes that are missing at the end of an answer that looks whole
    damages: bool = False


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class HubServer:
    TOKEN = "hf_" + "open" * 8

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Stored] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.large: dict[str, bytes] = {}  # what was sent, by its sha256
        self.sent: Counter[str] = Counter()  # bytes of answers, by the last part of the path
        hub = self

        class Bound(Answer):
            pass

        Bound.hub = hub
        self.server = Server(("127.0.0.1", 0), Bound)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    def forget(self) -> None:
        """What an earlier test gave it, and what it was asked."""
        for kept in (self.repositories, self.faults, self.requests, self.sent, self.large):
            kept.clear()

    def add(self, kind: str, repository: str, files: dict[str, bytes], **fields: Any) -> Stored:
        large = frozenset(name for name in files if name.endswith((".safetensors", ".parquet", ".bin", ".gz")))
        stored = Stored(kind, repository, files, **{"large": large, **fields})
        self.repositories[(kind, repository)] = stored
        return stored

    def fault(self, path: str, **fields: Any) -> None:
        self.faults.append(Fault(path, **fields))

    def fetched(self, path: str) -> list[dict[str, str]]:
        """The headers of the GET requests for a path."""
        return [headers for method, asked, headers in self.requests if method == "GET" and path in asked]

    def next_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if (
                fault.path in path
                and fault.times > 0
                and (fault.status or method == "GET" or (method == "PUT" and fault.holds))
            ):
                fault.times -= 1
                return fault
        return None


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that break off are part of the tests; anything else is a fault of this server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Answer(Pushes, BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.posted = self.rfile.read(length)
        self.hub.requests.append((self.command, self.path, dict(self.headers)))
        self.fault = self.hub.next_fault(self.command, self.path)
        if self.fault and self.fault.status:
            self.send(self.fault.status, self.fault.body, self.fault.headers)
            return
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        if self.taken(self.command, path):
            return
        if path in ("/api/models", "/api/datasets"):
            self.search(path.removeprefix("/api/").rstrip("s"), query)
        elif path == "/api/whoami-v2":
            self.whoami()
        elif found := API.fullmatch(path):
            self.about("dataset" if found[1] == "datasets" else "model", found)
        elif found := FILE.fullmatch(path):
            self.file("dataset" if found["room"] else "model", found)
        else:
            self.send(404)

    def whoami(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.hub.TOKEN}":
            self.send(401, b'{"error": "Invalid username or password."}')
            return
        self.send_json({"name": "alice-on-the-hub", "auth": {"accessToken": {"role": "read"}}})

    def search(self, kind: str, query: dict[str, list[str]]) -> None:
        word, owner = query.get("search", [""])[0].lower(), query.get("author", [""])[0]
        ids = [id for of, id in self.hub.repositories if of == kind]
        self.send_json([{"id": id} for id in ids if word in id.lower() and id.startswith(owner)])

    def about(self, kind: str, found: re.Match[str]) -> None:
        if (stored := self.stored(kind, found["id"], found["revision"])) is None:
            return
        if found["verb"] == "tree":
            self.send_json(tree(stored, found["path"] or ""))
        elif found["verb"] == "paths-info":
            asked = parse_qs(self.posted.decode()).get("paths") or json.loads(self.posted or b"{}").get("paths", [])
            self.send_json(
                [{"type": "file", "path": name, **stored.entry(name)} for name in asked if name in stored.files]
            )
        else:
            siblings = [{"rfilename": name, **stored.entry(name)} for name in sorted(stored.files)]
            gated = "manual" if stored.gated else False
            known = {"id": stored.id, "sha": stored.commit, "gated": gated, "private": stored.private, "tags": []}
            self.send_json({**known, "siblings": siblings, **stored.said})

    def stored(self, kind: str, id: str, revision: str | None) -> Stored | None:
        """The repository, or None after an answer that says why not."""
        stored = self.hub.repositories.get((kind, id))
        known = self.headers.get("Authorization") == f"Bearer {self.hub.TOKEN}"
        if stored is None or (stored.private and not known):
            self.send(404 if known else 401, headers={"X-Error-Code": "RepoNotFound"})
            return None
        if revision in stored.history:
            return stored.at(revision)
        if revision not in (None, "main", stored.commit):
            self.send(404, headers={"X-Error-Code": "RevisionNotFound"})
            return None
        return stored

    def file(self, kind: str, found: re.Match[str]) -> None:
        if (stored := self.stored(kind, found["id"], found["revision"])) is None:
            return
        if stored.gated and self.headers.get("Authorization") != f"Bearer {self.hub.TOKEN}":
            self.send(401, headers={"X-Error-Code": "GatedRepo"})
        elif found["path"] not in stored.files:
            self.send(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": stored.commit})
        else:
            self.send_file(stored, found["path"])

    def send_file(self, stored: Stored, name: str) -> None:
        data, entry = stored.files[name], stored.entry(name)
        if self.fault and self.fault.damages:
            data = data[:-1] + bytes([data[-1] ^ 1])
        etag = f'"{entry["lfs"]["sha256"] if "lfs" in entry else entry["oid"]}"'
        headers = {
            "ETag": etag,
            "X-Linked-Etag": etag,
            "X-Linked-Size": str(len(data)),
            "X-Repo-Commit": stored.commit,
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked or (self.fault and self.fault.ignores_range):
            self.send(200, data, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            self.send(416, headers={"Content-Range": f"bytes */{len(data)}"})
            return
        self.send(206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def count(self, body: bytes) -> None:
        self.hub.sent[urlsplit(self.path).path.rpartition("/")[2]] += len(body)

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        if self.fault and self.fault.cuts:
            body = body[: -self.fault.cuts]
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Accept-Ranges": "bytes",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.breaks_after:
            self.count(body[: self.fault.breaks_after])
            self.wfile.write(body[: self.fault.breaks_after])
            self.wfile.flush()
            if self.fault.holds:
                self.fault.holds.wait(60)
            self.close_connection = True
            return
        self.count(body)
        pieces = 50 if self.fault and self.fault.drips else 1
        size = max(1, -(-len(body) // pieces))
        for start in range(0, len(body), size):
            self.wfile.write(body[start : start + size])
            self.wfile.flush()
            time.sleep(self.fault.drips if self.fault else 0)


def tree(stored: Stored, folder: str) -> list[dict[str, Any]]:
    below = [name for name in sorted(stored.files) if name.startswith(f"{folder}/" if folder else "")]
    folders = sorted({name.rpartition("/")[0] for name in below if "/" in name} - {folder})
    entries = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in folders]
    return entries + [{"type": "file", "path": name, **stored.entry(name)} for name in below]
