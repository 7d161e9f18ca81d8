"""What a peer weighs: import time and installed size beyond Prefect's."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.lab import Lab
from benchmarks.peers import Peer

# Each peer's package, the names a flow imports of it, and its distribution.
_NAMES = {
    "ours": ("prefect_qruntime", "QuantumRuntimeCredentials arun_job runtime_session hooks", "prefect-qruntime"),
    "official": ("qiskit_ibm_runtime", "QiskitRuntimeService SamplerV2 Session", "qiskit-ibm-runtime"),
    "prefect-qiskit": ("prefect_qiskit.runtime", "QuantumRuntime", "prefect-qiskit"),
}


def import_time(lab: Lab, peer: Peer) -> dict[str, float]:
    """Import the package after Prefect, then the names that a flow uses, which ours resolves on first use."""
    import prefect

    for name in ("flow", "task", "get_run_logger"):
        getattr(prefect, name)
    module, names, _ = _NAMES[lab.peer]
    begun = time.perf_counter()
    package = import_module(module)
    bare = time.perf_counter() - begun
    for name in names.split():
        getattr(package, name)
    used = time.perf_counter() - begun
    return {"seconds": bare, "names": used, "heavy": sum(name in sys.modules for name in ("qiskit", "numpy"))}


def installed_size(lab: Lab, peer: Peer) -> dict[str, float]:
    """Add up the files of the distributions that are needed beside Prefect's own; compiled caches aside."""
    base = _closure("prefect")
    needed = _closure(_NAMES[lab.peer][2])
    return {
        "mib": sum(_bytes(name) for name in needed - base) / 2**20,
        "prefect_mib": sum(_bytes(name) for name in base) / 2**20,
        "distributions": len(needed - base),
    }


def _closure(root: str) -> set[str]:
    found: set[str] = set()
    ahead: list[tuple[str, frozenset[str]]] = [(root, frozenset())]
    seen: set[tuple[str, frozenset[str]]] = set()
    while ahead:
        name, extras = ahead.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:  # for another platform
            continue
        found.add(canonicalize_name(name))
        for text in needs:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in (extras or {""})):
                ahead.append((canonicalize_name(need.name), frozenset(need.extras)))
    return found


def _bytes(name: str) -> int:
    dist = distribution(name)
    if name == "prefect-qruntime":
        # Installed editable, it has no files of its own on record.
        spec = find_spec("prefect_qruntime")
        folders = spec.submodule_search_locations if spec else None
        paths = [path for folder in folders or [] for path in Path(folder).rglob("*")]
    else:
        paths = _recorded(dist)
    return sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".pyc")


def _recorded(dist: Distribution) -> list[Path]:
    return [Path(str(file.locate())) for file in dist.files or []]
