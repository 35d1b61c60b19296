"""A stand-in for the server of wandb on loopback: it answers as much as a client needs, and keeps what it receives.

It knows the protocol by what the client asks (0.31): queries of GraphQL, rows of files that grow in ``file_stream``,
and files as a whole by PUT. An artifact is a record, a manifest, and files, which are uploaded one by one.
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_SOMEONE = {"id": "e", "name": "someone"}
_GROWING = {"history": "wandb-history.jsonl", "log": "output.log", "events": "wandb-events.jsonl"}


class Received:
    """What a client has sent.

    Attributes:
        run: the variables of the run's mutations, later ones over earlier ones: config, tags, group, job type.
        rows: of each file that grows, by number of line.
        files: by name.
        artifacts: records of artifacts.
        committed: ids of the artifacts whose files have all arrived; the k-th record has the id ``a<k>``.
        finished: whether the client has said that the run is complete.
    """

    def __init__(self) -> None:
        self.run: dict[str, Any] = {}
        self.rows: dict[str, dict[int, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.committed: list[str] = []
        self.finished = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of the metrics, without what wandb adds to each."""
        rows = self.rows.get("wandb-history.jsonl", {})
        return [{k: v for k, v in rows[i].items() if not k.startswith("_")} for i in sorted(rows)]

    @property
    def steps(self) -> list[int]:
        """wandb's own count of each row of the metrics, in the order of the file."""
        rows = self.rows.get("wandb-history.jsonl", {})
        return [rows[i]["_step"] for i in sorted(rows)]

    def uploaded(self, artifact: int) -> dict[str, bytes]:
        """The files of an artifact, by their names in it."""
        start = f"artifact/a{artifact}/"
        return {name.removeprefix(start): data for name, data in self.files.items() if name.startswith(start)}

    @property
    def summary(self) -> dict[str, Any]:
        """The last summary."""
        rows = self.rows["wandb-summary.json"]
        return rows[max(rows)]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, without what wandb wraps around each value."""
        return {name: entry["value"] for name, entry in json.loads(self.run["config"]).items()}


@contextmanager
def standin() -> Iterator[tuple[str, Received]]:
    """The address of a running stand-in, and what it receives."""
    received = Received()

    class Handler(_Handler):
        kept = received

    with _Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that leaves does not say goodbye
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kept: Received

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            return self._answer(self._asked(json.loads(body)))
        if self.path.startswith("/sdk/"):  # telemetry of the client
            return self._answer({})
        assert self.path.endswith("/file_stream"), self.path
        sent = json.loads(body)
        for name, part in (sent.get("files") or {}).items():
            lines = enumerate(map(json.loads, part["content"]), part["offset"])
            self.kept.rows.setdefault(name, {}).update(lines)
        self.kept.finished |= bool(sent.get("complete"))
        self._answer({})

    def do_PUT(self) -> None:
        self.kept.files[self.path.removeprefix("/upload/")] = self._body()
        self._answer({})

    def _asked(self, question: dict[str, Any]) -> dict[str, Any]:
        given, name = question.get("variables") or {}, question["query"].split("(")[0].split()[1]
        if name == "UpsertBucket":
            known = self._known(given["name"])
            self.kept.run |= {k: v for k, v in given.items() if v is not None}
            project = {"id": "p", "name": given["project"], "entity": _SOMEONE}
            bucket = {"id": "r", "name": given["name"], "displayName": self.kept.run["displayName"], "project": project}
            more = {"description": None, "config": given["config"], "sweepName": None}
            more["historyLineCount"] = known["historyLineCount"] if known else 0
            return {"upsertBucket": {"bucket": {**bucket, **more}, "inserted": known is None}}
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"http://{self.headers['Host']}/upload/{f}"} for f in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if name == "RunResumeStatus":
            return {
                "model": {"id": "p", "name": given["project"], "entity": _SOMEONE, "bucket": self._known(given["name"])}
            }
        if name == "CreateArtifact":
            self.kept.artifacts.append(given["input"])
            made = {"id": f"a{len(self.kept.artifacts) - 1}", "state": "PENDING"}
            return {"createArtifact": {"artifact": {**made, "artifactSequence": {"latestArtifact": None}}}}
        if name == "CreateArtifactFiles":
            nodes = [self._place(one["artifactID"], one["name"]) for one in given["input"]["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if name in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            place = {"id": "f", **self._place("manifest", "manifest.json")}
            answer = {"artifactManifest": {"id": "m", "file": place}}
            return {name[0].lower() + name[1:]: answer}
        if name == "CommitArtifact":
            self.kept.committed.append(given["artifactID"])
            return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}
        if name == "Viewer":
            teams, who = (
                {"edges": []},
                {"id": "u", "entity": "someone", "username": "someone", "email": "", "flags": "{}"},
            )
            return {"viewer": {**who, "teams": teams}}
        return {"ArtifactType": {"project": None}}.get(name, {})  # others may go without an answer

    def _place(self, artifact: str, name: str) -> dict[str, Any]:
        """Where a file of an artifact goes."""
        path = f"artifact/{artifact}/{name}"
        where = {"storagePath": path, "uploadUrl": f"http://{self.headers['Host']}/upload/{path}"}
        return {**where, "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": artifact}}

    def _known(self, name: str) -> dict[str, Any] | None:
        """What the server has of a run, for one that goes on with it; None of an unknown one."""
        if self.kept.run.get("name") != name:
            return None
        rows = self.kept.rows
        counts = {f"{what}LineCount": len(rows.get(file, {})) for what, file in _GROWING.items()}
        history = rows.get("wandb-history.jsonl", {})
        tail = json.dumps([json.dumps(history[max(history)])]) if history else "[]"
        about = {"id": "r", "name": name, "displayName": self.kept.run["displayName"], "tags": [], "notes": ""}
        started = json.dumps({"t": {}})  # a run without it was planned only
        summary = rows.get("wandb-summary.json", {0: {}})
        told = {"summaryMetrics": json.dumps(summary[max(summary)]), "config": self.kept.run["config"]}
        return {**about, **told, **counts, "historyTail": tail, "eventsTail": "[]", "wandbConfig": started}

    def _answer(self, data: dict[str, Any]) -> None:
        text = json.dumps({"data": data} if self.path == "/graphql" else data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
