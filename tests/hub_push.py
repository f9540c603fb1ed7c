"""The part of the hub that takes files: repositories are made, large files come by LFS, commits as lines of JSON."""

import base64
import json
import re
from typing import Any

PREUPLOAD = re.compile(r"/api/models/(?P<id>.+)/preupload/[^/]+")
COMMIT = re.compile(r"/api/models/(?P<id>.+)/commit/[^/]+")
BATCH = re.compile(r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
LARGE = (".safetensors", ".npz", ".pt", ".gz")


class Pushes:
    """Beside `Answer` of hub_server.py."""

    hub: Any
    fault: Any
    posted: bytes

    def taken(self, method: str, path: str) -> bool:
        """Whether this was a request that sends something, and has been answered."""
        if method == "PUT" and path.startswith("/lfs/"):
            if self.fault:
                self.fault.holds.wait(60)
            self.hub.large[path.rpartition("/")[2]] = self.posted
            self.send(200)
            return True
        if method != "POST":
            return False
        found = [pattern.fullmatch(path) for pattern in (PREUPLOAD, COMMIT, BATCH)]
        if path != "/api/validate-yaml" and path != "/api/repos/create" and not any(found):
            return False
        if path == "/api/validate-yaml":  # anyone may ask
            self.send_json({"warnings": [], "errors": []})
        elif self.headers.get("Authorization") != f"Bearer {self.hub.TOKEN}":
            self.send(401, b'{"error": "Invalid username or password."}')
        elif path == "/api/repos/create":
            self.make()
        else:
            self.take(*found)
        return True

    def make(self) -> None:
        said = json.loads(self.posted)
        id = f"{said['organization']}/{said['name']}" if said.get("organization") else said["name"]
        if id.startswith("others/"):
            self.send(403, b'{"error": "You have no right to write there."}')
            return
        if ("model", id) not in self.hub.repositories:
            self.hub.add("model", id, {}, private=said.get("visibility") == "private")
        self.send_json({"url": f"{self.hub.url}/{id}", "name": id})

    def take(self, preupload: Any, commit: Any, batch: Any) -> None:
        if preupload:
            files = json.loads(self.posted)["files"]
            modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in files}
            self.send_json(
                {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}
            )
        elif batch:
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}}}}
                for one in json.loads(self.posted)["objects"]
            ]
            self.send_json({"transfer": "basic", "objects": objects})
        else:
            self.commit(commit["id"])

    def commit(self, id: str) -> None:
        stored = self.hub.repositories[("model", id)]
        for line in self.posted.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                stored.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                stored.files[value["path"]] = self.hub.large[value["oid"]]
        url = f"{self.hub.url}/{id}/commit/{stored.commit}"
        self.send_json({"success": True, "commitOid": stored.commit, "commitUrl": url, "hookOutput": "", "name": id})
