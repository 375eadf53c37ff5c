"""A hub on this machine: what huggingface_hub calls to make a repository, to commit files and to read them."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Files = dict[str, bytes]
KINDS = {"models": "", "datasets": "datasets/"}


class Hub(ThreadingHTTPServer):
    """Repositories by kind and name, such as models/me/student, each with the files of its last commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Call)
        self.repos: dict[str, Files] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo: str) -> str:
        """The name of a repository's last commit: another one for other files."""
        digest = hashlib.sha1()
        for name, content in sorted(self.repos[repo].items()):
            digest.update(name.encode() + hashlib.sha1(content).digest())
        return digest.hexdigest()


class Call(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_known":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            kind, name = f"{wanted.get('type', 'model')}s", f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            self.server.repos.setdefault(f"{kind}/{name}", {})
            return self.answer(200, {"url": f"{self.server.url}/{KINDS[kind]}{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        call = re.fullmatch(r"/api/((?:models|datasets)/[\w./-]+)/(preupload|commit)/main(?:\?.*)?", self.path)
        if call is None or call[1] not in self.server.repos:
            return self.answer(404, {"error": "Repository not found"})
        if call[2] == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.repos[call[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = self.server.commit(call[1])
        kind, _, name = call[1].partition("/")
        url = f"{self.server.url}/{KINDS[kind]}{name}/commit/{commit}"
        return self.answer(200, {"commitUrl": url, "commitOid": commit})

    def do_GET(self) -> None:
        api = re.fullmatch(r"/api/((?:models|datasets)/[\w./-]+?)(?:/revision/\w+|/tree/\w+)?(?:\?.*)?", self.path)
        if api is not None and api[1] in self.server.repos:
            files = self.server.repos[api[1]]
            if "/tree/" in self.path:
                return self.answer(
                    200, [{"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40} for name in files]
                )
            siblings = [{"rfilename": name} for name in files]
            commit = self.server.commit(api[1])
            return self.answer(200, {"id": api[1].partition("/")[2], "sha": commit, "siblings": siblings})
        file = re.fullmatch(r"/(datasets/)?([\w-]+/[\w.-]+)/resolve/\w+/([\w./-]+)(?:\?.*)?", self.path)
        repo = "" if file is None else f"{'datasets' if file[1] else 'models'}/{file[2]}"
        if file is None or file[3] not in self.server.repos.get(repo, {}):
            return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        content = self.server.repos[repo][file[3]]
        etag = hashlib.sha1(content).hexdigest()
        return self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": self.server.commit(repo)})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def local_hub() -> Iterator[Hub]:
    """A hub that ends with the block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
