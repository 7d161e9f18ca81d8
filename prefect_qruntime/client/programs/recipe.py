"""Who made a quantum program, and how its items become PUBs: the post-processing record in `passthrough_data`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["RECIPE_AUTHOR", "RECIPE_VERSION", "Recipe", "recipe_of"]

RECIPE_AUTHOR = "prefect_qruntime"
RECIPE_VERSION = "p1"
"""Version of our own record; IBM's versions start with a `v`."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the items become PUBs.

    Attributes:
        kind: `sampler`, `estimator`, `ibm-sampler`, `ibm-estimator` or `items`.
        record: The post-processing record; empty for `items`.
    """

    kind: str
    record: Mapping[str, Any]


def recipe_of(raw: Mapping[str, Any]) -> Recipe:
    """Find out who made the quantum program.

    Raises:
        ValueError: A recipe of a version that is not known: its items must not be taken for PUBs.
    """
    passed = raw.get("passthrough_data")
    record = passed.get("post_processor") if isinstance(passed, dict) else None
    if not isinstance(passed, dict) or not isinstance(record, dict) or "version" not in record:
        return Recipe("items", {})
    version = record["version"]
    if record.get("by") == RECIPE_AUTHOR:
        if version != RECIPE_VERSION or record.get("program") not in ("sampler", "estimator"):
            raise ValueError(
                f"it was submitted by another version of prefect-qruntime, whose recipe {version!r:.40} is not known "
                "here; `.raw` has the data"
            )
        return Recipe(record["program"], record)
    theirs = "qiskit_mitigation" in passed or "num_pubs" in record
    if not theirs and not {"twirling", "meas_type"} <= record.keys():
        return Recipe("items", {})  # a record of another client, which does not describe the items
    if version != "v0.1":
        raise ValueError(
            f"it was made by IBM's client, whose recipe {version!r:.40} is not known here; `.raw` has the data"
        )
    return Recipe("ibm-estimator" if theirs else "ibm-sampler", record)
