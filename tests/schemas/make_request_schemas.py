"""Write the sandbox's request schemas: what request bodies need of IBM's document and of `additions.yaml`, as JSON.

Run it after a change of either file: `python -m tests.schemas.make_request_schemas`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DOCUMENT = Path(__file__).with_name("openapi-cloud.yaml")
ADDITIONS = Path(__file__).with_name("additions.yaml")
TARGET = Path(__file__).parents[2] / "prefect_qruntime" / "sandbox" / "request_schemas.json"
# The bodies that the document describes well enough as they are.
PLAIN_BODIES = (
    "CalibratorParams",
    "CreateSessionRequest",
    "InstanceConfigurationUpdate",
    "NoiseLearnerParams",
    "NoiseLearnerV3V01Params",
    "NoiseLearnerV3V02Params",
    "NoiseLearnerV3V03Params",
    "ReplaceTagsRequest",
    "UpdateSessionRequest",
)
_PREFIX = "#/components/schemas/"


def make() -> str:
    """Return the JSON text."""
    known = yaml.safe_load(DOCUMENT.read_text())["components"]["schemas"]
    additions = yaml.safe_load(ADDITIONS.read_text())
    if clash := known.keys() & additions.keys():
        raise ValueError(f"additions.yaml redefines {sorted(clash)}")
    known |= additions
    wanted, waiting = set(), [*additions, *PLAIN_BODIES]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting.extend(_references(known[name]))
    schemas = {name: _bare(known[name]) for name in sorted(wanted)}
    return json.dumps({"components": {"schemas": schemas}}, separators=(",", ":")) + "\n"


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner.removeprefix(_PREFIX).partition("/")[0]
            else:
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _bare(value: Any, *, names: bool = False) -> Any:
    """Drop descriptions, which nothing reads; below `properties` the keys are names of fields."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if names or key != "description"}
        return {key: _bare(inner, names=key == "properties" and not names) for key, inner in kept.items()}
    return [_bare(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    TARGET.write_text(make())
