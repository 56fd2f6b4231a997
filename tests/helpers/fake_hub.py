# SPDX-License-Identifier: Apache-2.0
"""The parts of the Hugging Face Hub that saving and loading models use, on this machine."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class FakeHub:
    """
    Serve while the context lasts.

    Args:
        large_from: Bytes from which a file goes to the storage of large files (LFS), whose clients must have
            `HF_HUB_DISABLE_XET=1`. Without it, no file does.

    Attributes:
        endpoint: Address to give as `HF_ENDPOINT`.
        repositories: Branches of each repository; a branch is a list of commits, a commit its files by path. The name
            of a dataset begins with `datasets/`.
        private: Repositories that only those with a token see.
        tokens: What the holder of a token may do: `"write"` or `"read"`.
        stored: Content of large files by SHA-256.
        sent: SHA-256 and size of each large file that arrived, in this order.
        requests: Method and path of each request.
        before: Function of a handler, called before each request is answered; returns whether it has answered.
    """

    def __init__(self, large_from: int | None = None):
        self.large_from = large_from
        self.repositories: dict[str, dict[str, list[dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.tokens = {"hf_test": "write", "hf_reader": "read"}
        self.stored: dict[str, bytes] = {}
        self.sent: list[tuple[str, int]] = []
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
        self.lock = threading.RLock()
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

    def refuse(self, code: str, status: int = 404):
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    @property
    def allowed(self) -> str | None:
        """What the token of the request allows; `None` without one."""
        return self.hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def is_hidden(self, repo_id: str) -> bool:
        return repo_id not in self.hub.repositories or (repo_id in self.hub.private and self.allowed is None)

    def begin(self) -> bytes | None:
        """The body of the request; `None` if it is answered already."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, urlsplit(self.path).path))
        return None if self.hub.before(self) else body

    def do_PUT(self):
        body = self.begin()
        if body is None:
            return
        name = urlsplit(self.path).path.rsplit("/", 1)[-1]
        with self.hub.lock:
            if hashlib.sha256(body).hexdigest() != name:
                return self.refuse("BadContent", 400)
            self.hub.stored[name] = body
            self.hub.sent.append((name, len(body)))
        self.answer({})

    def do_POST(self):
        body = self.begin()
        if body is None:
            return
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        with self.hub.lock:
            if parts[:2] == ["api", "datasets"] and parts[4] == "paths-info":
                return self.tell_of(f"datasets/{parts[2]}/{parts[3]}", parts[5], body)
            if parts[0] == "api" and parts[:2] not in (["api", "repos"], ["api", "models"]):
                return self.answer({})  # the validation of a card
            if self.allowed != "write":
                return self.refuse("Unauthorized", 401 if self.allowed is None else 403)
            if parts == ["api", "repos", "create"]:
                return self.create(json.loads(body))
            if parts[-3:] == ["lfs", "objects", "batch"]:
                return self.answer_large(json.loads(body)["objects"])
            repo_id, action, revision = "/".join(parts[2:4]), parts[4], "/".join(parts[5:])
            if repo_id not in self.hub.repositories:
                return self.refuse("RepoNotFound")
            branches = self.hub.repositories[repo_id]
            if action == "branch":
                if revision in branches:
                    return self.answer({"error": "Reference already exists"}, 409)
                branches[revision] = branches["main"][:]
                return self.answer({})
            if revision not in branches:
                return self.refuse("RevisionNotFound")
            if action == "preupload":
                return self.answer({"files": [self.mode_of(file) for file in json.loads(body)["files"]]})
            self.commit(repo_id, revision, body)

    def tell_of(self, repo_id: str, revision: str, body: bytes):
        paths = parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
        files = self.hub.files(repo_id, revision)
        return self.answer([self.listed(path, files[path]) for path in paths if path in files])

    def create(self, request: dict):
        repo_id = "/".join(filter(None, (request.get("organization") or "user", request["name"])))
        url = {"url": f"{self.hub.endpoint}/{repo_id}", "id": repo_id}
        if repo_id in self.hub.repositories:
            return self.answer({**url, "error": "You already created this model repo"}, 409)
        self.hub.repositories[repo_id] = {"main": [{}]}
        if request.get("private") or request.get("visibility") == "private":
            self.hub.private.add(repo_id)
        return self.answer(url)

    def mode_of(self, file: dict) -> dict:
        is_large = self.hub.large_from is not None and file["size"] >= self.hub.large_from
        return {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}

    def answer_large(self, objects: list[dict]):
        # What is stored is not asked for again.
        for entry in objects:
            if entry["oid"] not in self.hub.stored:
                entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/store/{entry['oid']}"}}
        return self.answer({"transfer": "basic", "objects": objects})

    def commit(self, repo_id: str, revision: str, body: bytes):
        branches = self.hub.repositories[repo_id]
        files, answer = dict(branches[revision][-1]), {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif line["key"] == "deletedFolder":
                files = {path: content for path, content in files.items() if not path.startswith(value["path"])}
        if parse_qs(urlsplit(self.path).query).get("create_pr"):
            number = sum(name.startswith("refs/pr/") for name in branches) + 1
            revision = f"refs/pr/{number}"
            branches[revision] = branches["main"][:]
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo_id}/discussions/{number}"
        branches[revision].append(files)
        commit, _ = self.hub.find(repo_id, revision)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{commit}"
        return self.answer({"success": True, "commitOid": commit, "commitUrl": url, **answer})

    def do_GET(self):
        if self.begin() is None:
            return
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts == ["api", "whoami-v2"]:
            return self.answer({"name": "user", "orgs": []}) if self.allowed else self.refuse("Unauthorized", 401)
        api = parts[:2] in (["api", "models"], ["api", "datasets"])
        if parts[:2] == ["api", "models"]:
            parts = parts[2:]
        elif api:
            parts = parts[1:]
        # The name of a repository of a dataset begins with `datasets/`.
        length = 3 if parts[0] == "datasets" else 2
        repo_id = "/".join(parts[:length])
        with self.hub.lock:
            if self.is_hidden(repo_id):
                return self.refuse("RepoNotFound", 404 if self.allowed else 401)
            self.answer_from(repo_id, parts[length:], api)

    def answer_from(self, repo_id: str, rest: list[str], api: bool):
        if rest[1:3] == ["refs", "pr"]:
            rest = [rest[0], "/".join(rest[1:4]), *rest[4:]]
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
            return self.answer(self.tree(entries, inside))
        if api:
            siblings = [{"rfilename": path} for path in files]
            facts = {"siblings": siblings, "tags": [], "private": repo_id in self.hub.private}
            return self.answer({"id": repo_id, "modelId": repo_id, "sha": commit, **facts})
        path = "/".join(rest[2:])
        if path not in files:
            return self.answer({"error": path}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = files[path]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        if (wanted := self.headers.get("Range")) and self.command == "GET":
            first, last = wanted.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1 if last else None]
            places = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            return self.answer(part, 206, ETag=etag, X_Repo_Commit=commit, Content_Range=places)
        return self.answer(content, ETag=etag, X_Repo_Commit=commit)

    def tree(self, entries: list[tuple[str, bytes]], inside: str) -> list[dict]:
        # Files and folders, all of them if it is asked for.
        is_deep = (parse_qs(urlsplit(self.path).query).get("recursive") or ["false"])[0].lower() == "true"
        listed, folders = [], {}
        for path, content in entries:
            parts = path[len(inside) :].split("/")
            for depth in range(1, len(parts)):
                folders.setdefault(inside + "/".join(parts[:depth]), depth)
            if is_deep or len(parts) == 1:
                listed.append(self.listed(path, content))
        return listed + [
            {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
            for path, depth in folders.items()
            if is_deep or depth == 1
        ]

    def listed(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        oid = hashlib.sha256(content).hexdigest()
        if oid in self.hub.stored:
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        return entry

    do_HEAD = do_GET
