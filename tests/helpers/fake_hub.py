"""A Hugging Face hub on this machine: the calls that huggingface_hub makes to find and to download a model."""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Files = dict[str, bytes]
API = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)(/(?P<kind>revision|tree)/(?P<revision>[^?]+))?(\?.*)?")
RESOLVE = re.compile(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)")


@dataclass
class Model:
    """A model with its commits, each the files of a folder."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    gated: bool = False

    def push(self, files: Files, branch: str = "main") -> str:
        """Adds a commit to a branch, and returns its hash."""
        commit = hashlib.sha1(repr((sorted(files), len(self.commits))).encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        return commit

    def at(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


class FakeHub:
    """A server of models by name, as a context manager.

    Who has its `token` may upload: `created` has what was asked of each new model, `cards` the texts of model cards.
    `fetched` counts downloads by model and file, `asked` by model the questions which commit a revision is.
    """

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.fetched: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.calls = 0
        self.token = "hf_secret"
        self.created: dict[str, Any] = {}
        self.cards: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_POST(self) -> None:
                hub.receive(self, self.rfile.read(int(self.headers["Content-Length"])))

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, *words: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def receive(self, request: BaseHTTPRequestHandler, sent: bytes) -> None:
        """The calls of an upload: a new model, which files are sent how, and a commit with their contents."""
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return self._send(request, 401, b"{}", {}, True)
        path = request.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked['organization']}/{asked['name']}"
            self.created[name] = asked
            self.models.setdefault(name, Model())
            answer: Any = {"url": f"{self.endpoint}/{name}"}
        elif path == "/api/validate-yaml":
            self.cards.append(json.loads(sent)["content"])
            answer = {"errors": [], "warnings": []}
        elif "/preupload/" in path:
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"], **modes} for file in json.loads(sent)["files"]]}
        else:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            lines = [json.loads(line) for line in sent.splitlines()]
            files = {one["value"]["path"]: one["value"] for one in lines if one["key"] == "file"}
            commit = self.models[name].push({key: base64.b64decode(one["content"]) for key, one in files.items()})
            url = f"{self.endpoint}/{name}/commit/{commit}"
            answer = {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""}
        self._send(request, 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, True)

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        self.calls += 1
        if request.path == "/api/whoami-v2":
            known = request.headers.get("Authorization") == f"Bearer {self.token}"
            return self._send(request, 200 if known else 401, json.dumps({"name": "me"}).encode(), {}, body)
        file, found = None, RESOLVE.fullmatch(request.path)
        if found is not None:
            file = found["file"]
        else:
            found = API.fullmatch(request.path)
        model = self.models.get(found["name"]) if found is not None else None
        if found is None or model is None:
            return self._send(request, 401, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        commit = model.at(found["revision"] or "main")
        if commit is None:
            return self._send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        if model.gated and file is not None:
            return self._send(request, 403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        files = model.commits[commit]
        if file is not None:
            if file not in files:
                return self._send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
            if body:
                self.fetched[f"{found['name']}/{file}"] += 1
            digest = hashlib.sha1(files[file]).hexdigest()
            return self._send(request, 200, files[file], {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}, body)
        if found["kind"] == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return self._send(request, 200, json.dumps(tree).encode(), {}, body)
        self.asked[found["name"]] += 1
        info = {"id": found["name"], "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        return self._send(request, 200, json.dumps(info).encode(), {}, body)

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        request.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(data)


def files_of(folder: Path) -> Files:
    """The files of a folder by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
