"""A plain httpx caller that checks every cloud answer, and every request that was taken, by the OpenAPI document."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import httpx
import yaml
from jsonschema import Draft202012Validator, FormatChecker

from prefect_qruntime.sandbox import Sandbox

SCHEMA_FILE = Path(__file__).parents[1] / "schemas" / "openapi-cloud.yaml"
GRANT = "urn:ibm:params:oauth:grant-type:apikey"
BELL = (
    'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c;'
    "h q[0]; cx q[0], q[1]; c[0] = measure q[0]; c[1] = measure q[1];"
)
BELL_STATE = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; h q[0]; cx q[0], q[1];'


class Document:
    """The OpenAPI document: finds the schema of an answer or a request and validates."""

    def __init__(self) -> None:
        self._doc = yaml.safe_load(SCHEMA_FILE.read_text())
        self._paths = [
            (re.compile(re.sub(r"\{id\}", "[^/]+", path) + r"\Z"), item) for path, item in self._doc["paths"].items()
        ]
        self._validators: dict[str, Draft202012Validator] = {}
        # What was found valid: a backend's long documents come again and again, and take 0.1 s each.
        self._valid: set[tuple[str, bytes]] = set()

    def check_request(self, method: str, path: str, request: httpx.Request) -> None:
        """A request that the service took: its body by the schema, its query by the names and kinds of it."""
        item = self._item(path)
        operation = item[method.lower()]
        body = operation.get("requestBody")
        if body is None:
            assert not request.content, f"{method} {path} has no body"
        else:
            assert request.headers["content-type"] == "application/json"
            self._validator(body["content"]["application/json"]["schema"]["$ref"]).validate(json.loads(request.content))
        given = [*item.get("parameters", ()), *operation.get("parameters", ())]
        known = {found["name"]: found["schema"] for found in map(self._resolved, given) if found["in"] == "query"}
        for name, value in request.url.params.multi_items():
            assert name in known, f"{method} {path} has no {name!r}"
            kind = known[name].get("type")
            assert kind != "boolean" or value in ("true", "false"), (name, value)
            assert kind != "integer" or value.isdecimal(), (name, value)
            assert value in known[name].get("enum", [value]), (name, value)

    def _item(self, path: str) -> dict[str, Any]:
        return next(item for pattern, item in self._paths if pattern.match(path))

    def _resolved(self, parameter: dict[str, Any]) -> dict[str, Any]:
        name = parameter.get("$ref", "").rpartition("/")[2]
        return self._doc["components"]["parameters"][name] if name else parameter

    def check(self, method: str, path: str, answer: httpx.Response) -> None:
        item = self._item(path)
        found = item[method.lower()]["responses"].get(str(answer.status_code))
        if found is None:
            assert answer.status_code >= 400, f"{method} {path} -> {answer.status_code} is not documented"
            found = {"$ref": "#/components/responses/Error"}
        if "$ref" in found:
            found = self._doc["components"]["responses"]["Error"]
        content = found.get("content")
        if content is None:
            # The pulse defaults have no schema; everything else without one is empty.
            assert answer.status_code != 204 or answer.content == b""
            return
        media = answer.headers["content-type"].split(";")[0]
        if media == "text/plain":  # logs, and the results of a failed job
            assert path.endswith(("/logs", "/results"))
            return
        ref = content["application/json"]["schema"]["$ref"]
        seen = (ref, hashlib.sha256(answer.content).digest())
        if seen not in self._valid:
            self._validator(ref).validate(answer.json())
            self._valid.add(seen)

    def _validator(self, ref: str) -> Draft202012Validator:
        if ref not in self._validators:
            schema = {"$ref": ref, "components": self._doc["components"]}
            self._validators[ref] = Draft202012Validator(schema, format_checker=FormatChecker())
        return self._validators[ref]


DOCUMENT = Document()


class Api:
    """One user in one dialect."""

    def __init__(self, sandbox: Sandbox, dialect: str = "cloud", user: int = 0) -> None:
        self.sandbox = sandbox
        self.control = sandbox.control
        self.dialect = dialect
        self.key, self.crn = sandbox.instances[user]
        self.http = httpx.Client(trust_env=False, timeout=20)
        self.headers = {"Service-CRN": self.crn}
        if dialect == "cloud":
            self.headers["IBM-API-Version"] = "2026-04-15"
        else:
            self.headers["x-qx-client-application"] = "qiskit-version-2/0.39.2/tests"
        self.login()

    def login(self) -> dict[str, Any]:
        form = {"grant_type": GRANT, "apikey": self.key}
        answer = self.http.post(f"{self.sandbox.iam_url}/identity/token", data=form)
        assert answer.status_code == 200
        self.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        return answer.json()

    def __call__(self, method: str, path: str, *, loose: bool = False, **options: Any) -> httpx.Response:
        """Send a request; `loose` for one that the service takes although it is not by its document."""
        headers = {**self.headers, **options.pop("headers", {})}
        headers = {name: value for name, value in headers.items() if value is not None}
        url = self.sandbox.base_url(self.dialect) + path
        answer = self.http.request(method, url, headers=headers, **options)
        if self.dialect == "cloud":
            where = f"/v1{path.partition('?')[0]}"
            DOCUMENT.check(method, where, answer)
            if answer.is_success and not loose:
                DOCUMENT.check_request(method, where, answer.request)
        elif answer.status_code >= 400:
            assert answer.json()["errors"][0]["message"]
        return answer

    def submit(
        self, pubs: Any = None, *, program: str = "sampler", loose: bool = False, **fields: Any
    ) -> httpx.Response:
        params = fields.pop("params", None)
        if params is None:
            params = {"pubs": [[BELL, None, 50]] if pubs is None else pubs, "version": 2}
        body = {"program_id": program, "backend": "sandbox_ideal", "params": params, **fields}
        return self("POST", "/jobs", loose=loose, json=body)

    def job_id(self, *args: Any, **fields: Any) -> str:
        answer = self.submit(*args, **fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def run(self, *args: Any, **fields: Any) -> Any:
        """Submit, wait, and return the results' JSON."""
        job_id = self.job_id(*args, **fields)
        job = self.control.wait_job(job_id)
        answer = self("GET", f"/jobs/{job_id}/results")
        assert job["status"] == "Completed", answer.text
        return answer.json()

    def status(self, job_id: str) -> str:
        return str(self("GET", f"/jobs/{job_id}", params={"exclude_params": "true"}).json()["state"]["status"])


def code(answer: httpx.Response) -> Any:
    """Return HTTP status and error code of a refusal."""
    return answer.status_code, answer.json()["errors"][0]["code"]
