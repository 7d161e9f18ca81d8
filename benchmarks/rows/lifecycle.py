"""The whole story in a flow, beside the same flow with empty tasks plus the same raw calls."""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from typing import Any

import httpx

from benchmarks.lab import BACKEND, BELL, Lab
from benchmarks.peers import Peer

_TASKS = 7


def lifecycle(lab: Lab, peer: Peer) -> dict[str, float]:
    """Seven tasks: authenticate, list, open, submit, wait, fetch, close; all three kinds in turn, after a warm-up."""
    ours, empty = _ours(lab), _empty()
    spans: dict[str, list[float]] = {"ours": [], "empty": [], "raw": []}
    asked: dict[str, Counter[str]] = {}
    with httpx.Client(base_url=f"{lab.base_url}/", trust_env=False, timeout=30) as http:
        for turn in range(lab.args["turns"] + 1):
            for name, work in (("ours", ours), ("empty", empty), ("raw", lambda: _raw(lab, http))):
                begun = time.perf_counter()
                work()
                if turn:
                    spans[name].append(time.perf_counter() - begun)
                asked[name] = _asked(lab)
    if asked["ours"] != asked["raw"]:
        raise RuntimeError(f"the raw calls are not those of the flow: {asked['ours']} and {asked['raw']}")
    middle = {name: statistics.median(values) for name, values in spans.items()}
    return {**middle, "ratio": middle["ours"] / (middle["empty"] + middle["raw"])}


def _ours(lab: Lab) -> Any:
    from prefect import flow

    import prefect_qruntime as qr

    credentials = qr.QuantumRuntimeCredentials(api_key=lab.api_key, crn=lab.crn, base_url=lab.base_url, iam_url=lab.url)

    @flow(name="lifecycle")
    def story() -> int:
        qr.authenticate(credentials)
        qr.list_backends(credentials)
        session = qr.open_session(credentials, BACKEND, max_ttl=600)
        job = qr.submit_job(credentials, [BELL], backend=BACKEND, session=session, shots=10)
        qr.wait_for_completion(credentials, job)
        result = qr.fetch_results(credentials, job)
        qr.close_session(credentials, session)
        return sum(result.counts().values())

    return story


def _empty() -> Any:
    from prefect import flow, task

    @task
    def nothing(number: int) -> int:
        return number

    @flow(name="empty")
    def seven() -> int:
        return sum([nothing(number) for number in range(_TASKS)])

    return seven


def _raw(lab: Lab, http: httpx.Client) -> None:
    """The calls that the story makes, one after the other."""
    if "Authorization" not in http.headers:
        form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": lab.api_key}
        token = httpx.post(f"{lab.url}/identity/token", data=form, trust_env=False).json()["access_token"]
        http.headers.update(
            {"Authorization": f"Bearer {token}", "Service-CRN": lab.crn, "IBM-API-Version": "2026-04-15"}
        )
    for path in ("backends", "instances/usage", "versions", "backends"):
        http.get(path).raise_for_status()
    session = http.post("sessions", json={"mode": "dedicated", "backend": BACKEND, "max_ttl": 600}).json()["id"]
    body = {
        "program_id": "sampler",
        "backend": BACKEND,
        "session_id": session,
        "params": {"pubs": [[BELL, None, 10]], "version": 2},
    }
    job = http.post("jobs", json=body).raise_for_status().json()["id"]
    while http.get(f"jobs/{job}", params={"exclude_params": "true"}).json()["status"] != "Completed":
        time.sleep(0.005)
    http.get(f"jobs/{job}/results").raise_for_status()
    http.patch(f"sessions/{session}", json={"accepting_jobs": False}).raise_for_status()
    queued = {"exclude_params": "true", "limit": 1, "pending": "true", "session_id": session}
    http.get("jobs", params=queued).raise_for_status()
    http.delete(f"sessions/{session}/close").raise_for_status()
    http.get(f"sessions/{session}").raise_for_status()


def _asked(lab: Lab) -> Counter[str]:
    """What was asked since the journal was cleared, without ids, token, and looks at the job."""
    asked: Counter[str] = Counter()
    for entry in lab.control("journal"):
        path = re.sub(r"^/(jobs|sessions)/[^/?]+", r"/\1/{id}", entry["path"].split("?")[0])
        asked[f"{entry['method']} {path}"] += 1
    lab.control("clear_journal")
    for looked in ("POST /identity/token", "GET /jobs/{id}"):
        asked.pop(looked, None)
    return asked
