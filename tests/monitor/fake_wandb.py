"""Stand-in W&B server: answers the requests of wandb-core 0.31, and keeps what it was told.

It knows the GraphQL operations of a run's life, file-stream posts and uploads. Runs live as long as
the server, so that resuming with the same id can be tested.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer(ThreadingHTTPServer):
    """Listens on a free port of this machine.

    Of each run by its id: histories, the logged rows; summaries; exit_codes; upserts, what is sent when a run
    is opened. alerts, artifacts: as sent. keys: the authorizations seen. bodies: of all requests.
    sweep: its configuration; commands: what its agent is told next.
    failing: a status that every POST gets instead of an answer. answers: while it is not set, none comes.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.histories: dict[str, list[dict[str, Any]]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.exit_codes: dict[str, int] = {}
        self.upserts: list[dict[str, Any]] = []
        self.alerts: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.bodies: list[bytes] = []
        self.sweep = ""
        self.commands: list[dict[str, Any]] = []
        self.failing: int | None = None
        self.answers = threading.Event()
        self.answers.set()

    def config(self, run: str) -> dict[str, Any]:
        """The configuration of a run as it was sent last."""
        sent = [upsert["config"] for upsert in self.upserts if upsert["name"] == run and upsert["config"]]
        return {name: item["value"] for name, item in json.loads(sent[-1]).items()}

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a killed client drops its connections
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self._body()
        self._reply({})

    def do_POST(self) -> None:
        data = self._body()
        self.server.answers.wait()
        if self.server.failing is not None:
            self._reply({"error": "down"}, self.server.failing)
        elif self.path.endswith("/graphql"):
            self._reply({"data": self._graphql(json.loads(data))})
        elif "/file_stream" in self.path:
            self._file_stream(self.path.split("/")[-2], json.loads(data))
            self._reply({"exitcode": None, "limits": {}})
        else:
            self._reply({})

    def _body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        data = gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data
        self.server.bodies.append(data)
        return data

    def _reply(self, answer: dict[str, Any], code: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        self.server.keys.add(self.headers.get("authorization") or "")
        variables = request.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        operation = found.group(1) if found else ""
        run = variables.get("name") or variables.get("run") or "x"
        project = {"id": "p", "name": variables.get("project") or "p", "entity": {"id": "e", "name": "team"}}
        if operation == "UpsertBucket":
            self.server.upserts.append(variables)
            inserted = run not in self.server.histories
            bucket = {**self._bucket(run), "sweepName": None, "description": "", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if operation in ("RunResumeStatus", "ResumeStatus"):
            return {
                "model": {**project, "bucket": self._bucket(run) if run in self.server.histories else None}
            }
        if operation == "SweepWithRuns":
            sweep = {"id": "s", "name": variables["sweep"], "state": "RUNNING", "method": "bayes"}
            return {"project": {"sweep": {**sweep, "config": self.server.sweep, "runs": {"edges": []}}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "agent"}}}
        if operation == "Heartbeat":
            commands, self.server.commands = self.server.commands, []
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        if operation == "ArtifactType":
            return {"project": None}
        if operation == "CreateArtifact":  # as if the server had its files already
            self.server.artifacts.append(variables["input"])
            same = {"id": f"artifact-{len(self.server.artifacts)}"}
            sequence = {"latestArtifact": same}
            return {
                "createArtifact": {"artifact": {**same, "state": "COMMITTED", "artifactSequence": sequence}}
            }
        if operation == "NotifyScriptableRunAlert":
            self.server.alerts.append(variables)
            return {"notifyScriptableRunAlert": {"success": True}}
        if operation == "Run":
            return {"project": {"run": self._run(run)}}
        if operation in ("Viewer", "GetDefaultEntity"):
            return {
                "viewer": {
                    "id": "v",
                    "entity": "team",
                    "username": "u",
                    "flags": "{}",
                    "email": "u@team",
                    "teams": {"edges": []},
                }
            }
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "CreateRunFiles":
            files = [
                {"name": name, "uploadUrl": f"{self.server.url}/storage/{name}"}
                for name in variables.get("files", [])
            ]
            return {"createRunFiles": {"runID": "id", "uploadHeaders": [], "files": files}}
        return {}

    def _bucket(self, run: str) -> dict[str, Any]:
        history = self.server.histories.setdefault(run, [])
        last = json.dumps(history[-1]) if history else "{}"
        return {
            "id": "id-" + run,
            "name": run,
            "displayName": run,
            "summaryMetrics": last,
            "config": "{}",
            "logLineCount": 0,
            "historyLineCount": len(history),
            "eventsLineCount": 0,
            "tags": [],
            "historyTail": json.dumps([last] if history else []),
            "eventsTail": "[]",
            "wandbConfig": '{"t":1}',
        }

    def _run(self, run: str) -> dict[str, Any]:
        """As the public API reads a run."""
        history = self.server.histories.get(run, [])
        last = max((row["_step"] for row in history), default=-1)
        texts = dict.fromkeys(("displayName", "group", "jobType", "description", "notes"), run)
        return {
            **texts, "id": "id-" + run, "name": run, "projectId": "1", "tags": [], "sweepName": None,
            "state": "finished", "config": "{}", "commit": None, "readOnly": False, "createdAt": "",
            "heartbeatAt": "", "systemMetrics": "{}", "summaryMetrics": "{}",
            "user": {"name": "u", "username": "u"},
            "historyLineCount": len(history), "historyKeys": {"lastStep": last, "keys": {}},
        }  # fmt: skip

    def _file_stream(self, run: str, post: dict[str, Any]) -> None:
        for name, part in (post.get("files") or {}).items():
            if "history" in name:
                rows = [json.loads(line) for line in part["content"]]
                self.server.histories.setdefault(run, [])[part["offset"] :] = rows
            elif "summary" in name:
                self.server.summaries[run] = json.loads(part["content"][-1])
        if post.get("exitcode") is not None:
            self.server.exit_codes[run] = post["exitcode"]
