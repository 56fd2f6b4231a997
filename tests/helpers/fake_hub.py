# SPDX-License-Identifier: Apache-2.0
"""The parts of the Hugging Face Hub that saving and loading models use, on this machine."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FakeHub:
    """
    Serve while the context lasts.

    Attributes:
        endpoint: Address to give as `HF_ENDPOINT`.
        repositories: Branches of each repository; a branch is a list of commits, a commit its files by path.
    """

    def __init__(self):
        self.repositories: dict[str, dict[str, list[dict[str, bytes]]]] = {}
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Files of the last commit of a branch, or of the commit of this name."""
        return self.find(repo_id, revision)[1]

    def find(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]]:
        branches = self.repositories[repo_id]
        for name, commits in branches.items():
            for position, files in reversed(list(enumerate(commits))):
                commit = hashlib.sha1(f"{repo_id}{name}{position}".encode()).hexdigest()
                if revision in (name, commit):
                    return commit, files
        raise KeyError(revision)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content, status: int = 200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: str):
        self.answer({"error": code}, 404, X_Error_Code=code, X_Error_Message=code)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        with self.hub.lock:
            if parts == ["api", "repos", "create"]:
                request = json.loads(body)
                repo_id = "/".join(filter(None, (request.get("organization") or "user", request["name"])))
                url = {"url": f"{self.hub.endpoint}/{repo_id}", "id": repo_id}
                if repo_id in self.hub.repositories:
                    return self.answer({**url, "error": "You already created this model repo"}, 409)
                self.hub.repositories[repo_id] = {"main": [{}]}
                return self.answer(url)
            if parts[:2] != ["api", "models"]:
                return self.answer({})  # the validation of a card
            repo_id, action, revision = "/".join(parts[2:4]), parts[4], parts[5]
            branches = self.hub.repositories[repo_id]
            if action == "branch":
                if revision in branches:
                    return self.answer({"error": "Reference already exists"}, 409)
                branches[revision] = branches["main"][:]
                return self.answer({})
            if action == "preupload":
                files = json.loads(body)["files"]
                mode = {"uploadMode": "regular", "shouldIgnore": False}
                return self.answer({"files": [{"path": file["path"], **mode} for file in files]})
            files = dict(branches[revision][-1])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            branches[revision].append(files)
            commit, _ = self.hub.find(repo_id, revision)
            url = f"{self.hub.endpoint}/{repo_id}/commit/{commit}"
            return self.answer({"success": True, "commitOid": commit, "commitUrl": url})

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo_id = "/".join(parts[2:4] if api else parts[:2])
        if repo_id not in self.hub.repositories:
            return self.refuse("RepoNotFound")
        rest = parts[4:] if api else parts[2:]
        revision = rest[1] if len(rest) > 1 else "main"
        try:
            commit, files = self.hub.find(repo_id, revision)
        except KeyError:
            return self.refuse("RevisionNotFound")
        if api and rest[:1] == ["tree"]:
            inside = "".join(f"{part}/" for part in rest[2:])
            entries = [(path, content) for path, content in files.items() if path.startswith(inside)]
            if inside and not entries:
                return self.answer({"error": inside}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            tree = [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for p, c in entries
            ]
            return self.answer(tree)
        if api:
            siblings = [{"rfilename": path} for path in files]
            return self.answer({"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings, "tags": []})
        path = "/".join(rest[2:])
        if path not in files:
            return self.answer({"error": path}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        return self.answer(files[path], ETag=etag, X_Repo_Commit=commit)

    do_HEAD = do_GET
