"""The machine and the versions, as far as they say something about the numbers; no paths and no names."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_OURS = ("prefect-qruntime", "prefect", "httpx", "websockets", "orjson", "qiskit", "qiskit-aer")
_PEERS = ("qiskit-ibm-runtime", "prefect-qiskit", "prefect", "qiskit", "aiohttp", "requests")


def describe(peers_python: Path, *, quick: bool) -> dict[str, Any]:
    """Return the first line of the results."""
    asked = "from benchmarks.machine import versions; import json, sys; json.dump(versions(sys.argv[1:]), sys.stdout)"
    answer = subprocess.run(
        [str(peers_python), "-c", asked, *_PEERS],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    return {
        "quick": quick,
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "ours": versions(list(_OURS)),
        "peers": json.loads(answer.stdout),
    }


def versions(names: list[str]) -> dict[str, str]:
    """Return the installed versions of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
