"""A stand-in for the Hugging Face hub on the loopback: repositories of models and datasets, pushed to and read from.

What it answers follows huggingface_hub's own requests (hf_api.py, _commit_api.py, lfs.py, file_download.py) and
https://huggingface.co/docs/hub/api: weights go through LFS, and are fetched by way of a redirect.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from wandb_server import serving

HOST, TOKEN = "127.0.0.1", "hf_of_the_owner"
STORE = "localhost"  # another name than the hub's, as the real one's store has
Files = dict[str, bytes]


@dataclass
class Repository:
    """What each branch points to, and the files of each commit."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, branch: str = "main", message: str = "") -> str:
        whole = self.commits.get(self.branches.get(branch, ""), {}) | files
        content = "".join(f"{name}{len(data)}" for name, data in whole.items()) + str(len(self.commits))
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.branches[branch], self.commits[sha] = sha, whole
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch, or of its own name."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubServer(http.server.ThreadingHTTPServer):
    """`seen` are all requests; `sizes` are what files are said to have; `status` is what every request gets."""

    daemon_threads = True

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: Files = {}  # of LFS, by sha256
        self.sizes: dict[str, int] = {}
        self.status = 0
        self.silent = False  # takes every request and answers none
        self.released = threading.Event()
        self.seen: list[str] = []
        super().__init__((HOST, 0), Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}"

    def add(self, repo_id: str, files: Files) -> str:
        """A repository with these files; the commit."""
        return self.repositories.setdefault(repo_id, Repository()).commit(files)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_request(self) -> None:
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/agent-harnesses":  # the client's own curiosity, when it likes
            return self.reply(404)
        self.server.seen.append(f"{self.command} {path}")
        if self.server.silent:
            self.server.released.wait()
            self.close_connection = True
            return None
        if self.server.status:
            return self.reply(self.server.status, {"error": "out of order"})
        for method, pattern, action in ROUTES:
            if self.command in method.split() and (match := re.fullmatch(pattern, path)):
                return action(self, *match.groups())
        return self.reply(404, {"error": f"no such address: {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    @property
    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, repo_id: str) -> Repository | None:
        """None, and answered, where there is none that may be seen."""
        found = self.server.repositories.get(repo_id)
        if found is None or found.private and not self.is_owner:
            self.reply(404 if self.is_owner else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return found

    def create(self) -> None:
        asked = json.loads(self.content)
        if not self.is_owner:
            return self.reply(401, {"error": "Invalid username or password."})
        if asked["organization"] not in (None, "me"):
            return self.reply(403, {"error": "You don't have the rights to create a model under this namespace"})
        repo_id = f"me/{asked['name']}"
        folder = "datasets/" if asked.get("type") == "dataset" else ""
        answer = {"url": f"{self.server.url}/{folder}{repo_id}", "name": repo_id}
        if repo_id in self.server.repositories:
            return self.reply(409, answer | {"error": "You already created this model repo"})
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repositories[repo_id] = Repository(private=bool(private))
        self.server.repositories[repo_id].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.reply(200, answer)

    def branch(self, repo_id: str, branch: str) -> None:
        if found := self.repository(repo_id):
            found.branches.setdefault(branch, found.branches["main"])
            self.reply(201)

    def validate_yaml(self) -> None:
        asked = json.loads(self.content)
        header = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
        known = yaml.safe_load(header[1]) if header else {}
        wanted = ("license", "tags", "configs" if asked["repoType"] == "dataset" else "library_name")
        wrong = [name for name in wanted if name not in known]
        self.reply(400 if wrong else 200, {"errors": [{"message": f'"{name}" is missing'} for name in wrong]})

    def preupload(self, repo_id: str, _: str) -> None:
        if self.repository(repo_id):
            paths = [file["path"] for file in json.loads(self.content)["files"]]
            modes = ["lfs" if path.endswith((".safetensors", ".tar", ".npy")) else "regular" for path in paths]
            self.reply(200, {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False}
                                       for path, mode in zip(paths, modes, strict=True)]})

    def lfs_batch(self, _: str) -> None:
        objects = json.loads(self.content)["objects"]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
        self.reply(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def lfs(self, oid: str) -> None:
        if self.command != "PUT":
            assert "Authorization" not in self.headers, "the token is for the hub, not for its store"
            return self.reply(200, self.server.objects[oid], ETag=f'"{oid}"')
        assert hashlib.sha256(self.content).hexdigest() == oid
        self.server.objects[oid] = self.content
        return self.reply(200)

    def commit(self, repo_id: str, branch: str) -> None:
        if not (found := self.repository(repo_id)):
            return
        files, message = {}, ""
        for line in map(json.loads, self.content.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.objects[value["oid"]]
        sha = found.commit(files, branch, message)
        self.reply(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{repo_id}/commit/{sha}"})

    def info(self, repo_id: str, revision: str | None) -> None:
        if not (found := self.repository(repo_id)):
            return None
        if not (sha := found.find(revision or "main")):
            return self.reply(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        siblings = [{"rfilename": name, "size": self.server.sizes.get(name, len(content)), "blobId": "0"}
                    for name, content in found.commits[sha].items()]
        return self.reply(200, {"_id": "0", "id": repo_id, "modelId": repo_id, "sha": sha, "private": found.private,
                                "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        if not (found := self.repository(repo_id)):
            return None
        if not (sha := found.find(revision)):
            return self.reply(404, X_Error_Code="RevisionNotFound")
        if name not in found.commits[sha]:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        content = found.commits[sha][name]
        if not name.endswith(".safetensors"):
            return self.reply(200, content, X_Repo_Commit=sha, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        oid = hashlib.sha256(content).hexdigest()
        self.server.objects[oid] = content
        return self.reply(302, X_Repo_Commit=sha, X_Linked_Etag=f'"{oid}"', X_Linked_Size=str(len(content)),
                          Location=f"http://{STORE}:{self.server.server_port}/lfs/{oid}")


REPO, KIND = r"([\w.-]+/[\w.-]+)", "(?:models|datasets)"
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"/api/{KIND}/{REPO}/branch/(.+)", Handler.branch),
    ("POST", f"/api/{KIND}/{REPO}/preupload/(.+)", Handler.preupload),
    ("POST", f"/api/{KIND}/{REPO}/commit/(.+)", Handler.commit),
    ("POST", rf"/(?:datasets/)?{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("GET HEAD PUT", "/lfs/([0-9a-f]{64})", Handler.lfs),
    ("GET", f"/api/models/{REPO}(?:/revision/(.+))?", Handler.info),
    ("GET HEAD", f"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
)


def hub_server() -> contextlib.AbstractContextManager[HubServer]:
    return serving(HubServer())


def use_hub(monkeypatch: Any, url: str) -> None:
    """Makes the hub's client in this process ask the server at `url`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
