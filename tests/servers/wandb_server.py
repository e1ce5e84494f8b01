"""A stand-in for the wandb server on the loopback: the few queries wandb-core needs, and servers that fail.

What it answers follows core/api/graphql and core/internal/runbranch/resume.go of https://github.com/wandb/wandb: the
offsets of the file stream are kept to, so a row sent twice or out of turn shows.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

HOST = "127.0.0.1"
KEY = "0123456789abcdef0123456789abcdef01234567"  # of the length that wandb takes for one


@dataclass
class ServedRun:
    """What the server has of one run; `history` are the rows by line number."""

    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    notices: list[dict[str, Any]] = field(default_factory=list)  # the other things a file stream says: preempting, ...
    files: set[str] = field(default_factory=set)
    facts: dict[str, Any] = field(default_factory=dict)  # group, tags, ... as they were told last
    loads: list[dict[str, Any]] = field(default_factory=list)  # system metrics; each writer counts its own rows
    alerts: list[tuple[str, str, str]] = field(default_factory=list)  # severity, title, text

    def receive(self, message: dict[str, Any]) -> None:
        for name, part in message.get("files", {}).items():
            if name == "wandb-history.jsonl":
                rows = [json.loads(line) for line in part["content"]]
                assert part["offset"] <= len(self.history), "rows were left out"
                self.history[part["offset"]:part["offset"] + len(rows)] = rows
            elif name == "wandb-events.jsonl":
                self.loads += map(json.loads, part["content"])
        self.notices.append({key: value for key, value in message.items() if key != "files"})

    def bucket(self, run_id: str) -> dict[str, Any]:
        tail = [json.dumps(row) for row in self.history[-1:]]
        return {
            "id": f"bucket-{run_id}", "name": run_id, "displayName": run_id, "description": "", "sweepName": None,
            "config": json.dumps({key: {"value": value} for key, value in self.config.items()}),
            "summaryMetrics": json.dumps(self.history[-1] if self.history else {}),
            "tags": self.facts.get("tags", []), "notes": None,
            "historyLineCount": len(self.history), "logLineCount": 0, "eventsLineCount": 0,
            "historyTail": json.dumps(tail), "eventsTail": "[]", "wandbConfig": json.dumps({"t": 1}),
            "project": {"id": "project", "name": "srcnn", "entity": {"id": "entity", "name": "nobody"}},
        }


ServerT = TypeVar("ServerT", bound="http.server.ThreadingHTTPServer")


class WandbServer(http.server.ThreadingHTTPServer):
    """Runs by id in `runs`. `broken` is a status that every request gets, or "silence": accepted, never answered."""

    daemon_threads = True

    def __init__(self) -> None:
        self.runs: dict[str, ServedRun] = {}
        self.broken: int | str = 0
        self.broken_stream: int = 0  # a status for the file stream alone: rows are refused, the rest works
        self.sweeps: dict[str, str] = {}  # their YAML, by name
        self.trials: list[dict[str, Any]] = []  # what agents are told to run next
        self.views: dict[str, dict[str, Any]] = {}  # dashboards: their specifications, by name
        self.artifacts: list[dict[str, Any]] = []  # as they were made
        self.used: list[dict[str, Any]] = []  # by which run which artifact
        self.lock = threading.Lock()
        self.seen: list[str] = []  # all that was sent, as text
        self.released = threading.Event()
        super().__init__((HOST, 0), Handler)

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": f"http://{HOST}:{self.server_port}", "WANDB_API_KEY": KEY, "WANDB_MODE": "online",
                "WANDB_ERROR_REPORTING": "false"}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""

    def steps(self, run_id: str) -> list[int]:
        with self.lock:
            return [row["_step"] for row in self.runs[run_id].history] if run_id in self.runs else []

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            run = self.runs.setdefault(variables["name"], ServedRun())
            config = json.loads(variables.get("config") or "{}")
            run.config |= {key: entry["value"] for key, entry in config.items()}
            told = {"group": "groupName", "tags": "tags", "job_type": "jobType", "sweep": "sweep"}
            run.facts |= {name: variables[key] for name, key in told.items() if variables.get(key)}
            return {"upsertBucket": {"bucket": run.bucket(variables["name"]), "inserted": not run.history}}
        if "missingOk" in query:
            known = self.runs.get(variables["name"])
            bucket = known.bucket(variables["name"]) if known else None
            return {"model": {"id": "project", "name": "srcnn", "entity": {"id": "e", "name": "nobody"},
                              "bucket": bucket}}
        if "historyKeys" in query:  # wandb.Api().run(...), and its lastHistoryStep
            steps = [row["_step"] for row in self.runs[variables["name"]].history]
            more = {"state": "finished", "projectId": "1", "historyKeys": {"lastStep": max(steps, default=-1)}}
            return {"project": {"run": self.runs[variables["name"]].bucket(variables["name"]) | more}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"http://{HOST}:{self.server_port}/upload/{name}"}
                     for name in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            return {"viewer": {"id": "nobody", "entity": "nobody", "username": "nobody", "email": "", "flags": "{}",
                               "teams": {"edges": []}}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}}
        if "notifyScriptableRunAlert" in query:
            alert = (variables["severity"], variables["title"], variables["text"])
            self.runs[variables["runName"]].alerts.append(alert)
            return {"notifyScriptableRunAlert": {"success": True}}
        if "rtifact" in query:
            return self.answer_artifacts(query, variables)
        if "stopped" in query and "sweep(" not in query:
            return {"project": {"run": {"stopped": False}}}
        return self.answer_people(query, variables)

    def answer_artifacts(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """An artifact is made, its manifest uploaded, it is committed, and perhaps used by a run."""
        told = variables.get("input") or variables
        upload = {"id": "file", "uploadHeaders": [], "uploadUrl": f"http://{HOST}:{self.server_port}/manifest",
                  "displayName": "wandb_manifest.json", "storagePath": "wandb_manifest.json",
                  "uploadMultipartUrls": None, "artifact": {"id": "artifact"}}
        if "mutation CreateArtifact " in query:
            self.artifacts.append(told)
            made = {"id": f"artifact-{len(self.artifacts)}", "state": "PENDING"}
            return {"createArtifact": {"artifact": made | {"artifactSequence": {"latestArtifact": None}}}}
        if "mutation CreateArtifactManifest" in query or "mutation UpdateArtifactManifest" in query:
            name = "createArtifactManifest" if "mutation Create" in query else "updateArtifactManifest"
            return {name: {"artifactManifest": {"id": "manifest", "file": upload}}}
        if "mutation CreateArtifactFiles" in query:
            return {"createArtifactFiles": {"files": {"edges": [{"node": upload}] * len(told["artifactFiles"])}}}
        if "mutation CommitArtifact" in query:
            return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "digest"}}}
        if "mutation UseArtifact" in query:
            self.used.append(told)
            return {"useArtifact": {"artifact": {"id": told["artifactID"]}}}
        if "query ArtifactByID" in query:
            made = self.artifacts[int(variables["id"].rpartition("-")[2]) - 1]
            project = {"id": "project", "internalId": "1", "name": "srcnn", "entity": {"name": "nobody"}}
            sequence = {"__typename": "ArtifactSequence", "name": made["artifactCollectionName"], "project": project}
            return {"artifact": {
                "__typename": "Artifact", "id": variables["id"], "artifactSequence": sequence, "versionIndex": 0,
                "artifactType": {"name": made["artifactTypeName"]}, "description": None, "metadata": "{}",
                "ttlDurationSeconds": 0, "ttlIsInherited": False, "tags": [], "historyStep": None,
                "state": "COMMITTED", "size": 0, "digest": made["digest"], "commitHash": None, "fileCount": 1,
                "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None, "aliases": []}}
        return {"project": {"artifact": None}, "artifact": None}

    def answer_people(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What the commands of wandb ask for: sweeps, their agents, dashboards."""
        project = {"id": "project", "name": "srcnn", "entity": {"id": "entity", "name": "nobody"}}
        if "upsertSweep" in query:
            self.sweeps["thesweep"] = variables["config"]
            return {"upsertSweep": {"sweep": {"name": "thesweep", "project": project}, "configValidationWarnings": []}}
        if "SweepWithRuns" in query:
            sweep = {"id": "sweep", "name": "thesweep", "config": self.sweeps["thesweep"], "runs": {"edges": []}}
            return {"project": {"sweep": sweep}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "agentHeartbeat" in query:
            running = json.loads(variables["runState"])
            commands = [self.trials.pop(0)] if self.trials and not running else [{"type": "exit"}] * (not running)
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        if "upsertView" in query:
            self.views[variables["displayName"]] = json.loads(variables["spec"])
            return {"upsertView": {"view": {"id": "view", "name": variables["name"]}, "inserted": True}}
        return {}


class Handler(http.server.BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def reply(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.body()
        if self.server.broken == "silence":
            self.server.released.wait()
            self.close_connection = True
            return
        if self.server.broken:
            return self.reply(int(self.server.broken), {"errors": [{"message": "out of order"}]})
        is_stream = self.path.endswith("/file_stream")
        if is_stream and self.server.broken_stream:
            return self.reply(self.server.broken_stream, {"error": "out of order"})
        with self.server.lock:
            self.server.seen.append(body.decode(errors="replace"))
            message = json.loads(body) if body else {}
            if is_stream:
                self.server.runs[self.path.split("/")[-2]].receive(message)
                return self.reply(200, {"exitcode": None, "limits": {}})
            answer = self.server.answer(message.get("query", ""), message.get("variables") or {})
        self.reply(200, {"data": answer})

    def do_PUT(self) -> None:
        body = self.body()
        with self.server.lock:
            self.server.seen.append(f"{self.path} {body.decode(errors='replace')}")
        self.reply(200, {})

    def do_GET(self) -> None:
        self.reply(404, {})


def wandb_server() -> contextlib.AbstractContextManager[WandbServer]:
    return serving(WandbServer())


@contextlib.contextmanager
def serving(server: ServerT) -> Iterator[ServerT]:
    """A server in a thread; at the end what it holds back is `released`."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


def closed_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        return int(taken.getsockname()[1])
