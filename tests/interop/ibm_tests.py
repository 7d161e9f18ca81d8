"""Run IBM's own integration tests, unmodified, against the sandbox, and say why each other one cannot pass.

`make interop` calls this. The tests come with the source distribution of IBM's client, at the version that
`constraints.txt` pins; they are fetched by pip, kept outside the repository, and only read. Which of them pass is held
by `ibm_tests.json`: it fails if one of them does not, or if one passes that is said not to.

Those of the fake backends are left out: they need no service. All others need one, or IBM Cloud's account, for which
`cloud_front` stands in.

    python -m tests.interop.ibm_tests --sources .venv-interop/ibm [--only NAME] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import httpx

from prefect_qruntime.sandbox import Sandbox
from tests.interop.cloud_front import URL, CloudFront

PACKAGE = "qiskit-ibm-runtime"
EXPECTED = Path(__file__).with_name("ibm_tests.json")
# IBM's names: its tests look for a backend `test_eagle…`, for `alt_fez` with fractional gates, and for a backend
# `ibm_…` with a `mock_…` beside it.
QPU = "ibm_sandbox"
_ECR = ("ecr", "id", "rz", "sx", "x")
_FRACTIONAL = ("cz", "id", "rx", "rz", "rzz", "sx", "x")
_BACKENDS = {QPU: _ECR, "test_eagle_sandbox": _ECR, "alt_fez": _FRACTIONAL}
# Some of the tests want jobs that are old: the ten oldest ones, and a second page of five.
_HISTORY = 12
_PROGRAM = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'


def sources(folder: Path) -> Path:
    """Return the folder with IBM's tests, fetched by pip if it is not there."""
    wanted = version(PACKAGE)
    home = folder / f"{PACKAGE.replace('-', '_')}-{wanted}"
    if not (home / "test" / "integration").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", PACKAGE, "--dest", str(folder), f"{PACKAGE}=={wanted}"]
        subprocess.run(command, check=True)
        with tarfile.open(folder / f"{home.name}.tar.gz") as archive:
            wanted_parts = [
                member
                for member in archive.getmembers()
                if re.match(rf"{re.escape(home.name)}/(test/|pyproject\.toml$)", member.name)
            ]
            archive.extractall(folder, wanted_parts, filter="data")
    return home


def run(home: Path, only: str | None) -> dict[str, tuple[str, str]]:
    """Run the tests in a process of their own; return the outcome of each, with the reason if it did not pass."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Sandbox(queue_time=1.5, run_time=1.5, usage_limit_seconds=1_000_000, whole_seconds=True) as sandbox,
    ):
        for name, gates in _BACKENDS.items():
            sandbox.control.add_backend(name, basis_gates=gates)
        for name in ("mock_noisy", "mock_ideal"):  # beside a `sandbox_…`, which IBM's tests do not look for
            sandbox.control.set_backend(name, status="paused")
        history(sandbox)
        report = Path(folder) / "report.xml"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("QISKIT", "IAM_URL"))}
        with CloudFront(sandbox).running() as proxy:
            environment = kept | {
                "HOME": folder,
                "http_proxy": proxy,
                "no_proxy": "127.0.0.1,localhost",
                "IAM_URL": "http://iam.cloud.sandbox",
                "QISKIT_IBM_TOKEN": sandbox.api_key,
                "QISKIT_IBM_URL": URL,
                "QISKIT_IBM_INSTANCE": sandbox.crn,
                "QISKIT_IBM_QPU": QPU,
            }
            environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
            command += [
                "-W",
                "ignore",
                "--timeout=1800",
                "--tb=short",
                "--ignore=test/integration/test_fake_backends.py",
            ]
            command += ["-k", only] if only else []
            subprocess.run([*command, "test/integration"], cwd=home, env=environment, check=False)
        return outcomes(report)


def history(sandbox: Sandbox) -> None:
    """Let the QPU have some jobs that are over."""
    headers = {"Authorization": f"apikey {sandbox.api_key}", "Service-CRN": sandbox.crn}
    body = {"program_id": "sampler", "backend": QPU, "params": {"pubs": [[_PROGRAM]], "version": 2}}
    for _ in range(_HISTORY):
        made = httpx.post(f"{sandbox.base_url()}/jobs", json=body, headers=headers, trust_env=False).raise_for_status()
        sandbox.control.finish(made.json()["id"])


def outcomes(report: Path) -> dict[str, tuple[str, str]]:
    """Read pytest's report."""
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('test.integration.')}.{case.get('name')}"
        outcome, reason = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if child.tag == "skipped" else "failed"
                reason = (child.get("message") or child.text or "").strip().splitlines()[0]
        found[name] = (outcome, reason)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, required=True, help="Folder that keeps IBM's source distribution.")
    parser.add_argument("--only", help="Run the tests whose names match, as pytest's -k does.")
    parser.add_argument("--write", action="store_true", help="Write the names of those that pass.")
    given = parser.parse_args()
    found = run(sources(given.sources), given.only)
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {"passed": [], "cannot": {}}
    passed = sorted(name for name, (outcome, _) in found.items() if outcome == "passed")
    if given.write:
        EXPECTED.write_text(json.dumps({"passed": passed, "cannot": expected["cannot"]}, indent=2) + "\n")
        expected["passed"] = passed
    return say(found, expected, whole=given.only is None)


def say(found: dict[str, tuple[str, str]], expected: dict[str, dict[str, str]], *, whole: bool) -> int:
    """Print how many pass and why each other one cannot; return the exit code."""
    counts = Counter(outcome for outcome, _ in found.values())
    print(f"\nIBM's integration tests of {PACKAGE} {version(PACKAGE)}: {counts['passed']} of {len(found)} pass.")
    problems = []
    for name, (outcome, reason) in sorted(found.items()):
        if outcome == "passed":
            if name in expected["cannot"]:
                problems.append(f"{name} passes and is said not to: take it out of {EXPECTED.name}.")
            continue
        if name in expected["cannot"]:
            print(f"  {name}: {expected['cannot'][name]}")
        else:
            problems.append(f"{name} {outcome}: {reason}")
    if whole:
        problems += [f"{name} was not run." for name in expected["passed"] if name not in found]
    for problem in problems:
        print(f"  UNEXPECTED: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
