"""`prefect-qruntime init`."""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from prefect_qruntime.errors import InvalidInput

__all__ = ["init"]

_ENV = """\
# The address of Prefect's server. Without it each command starts a temporary server of its own.
PREFECT_API_URL=http://127.0.0.1:4200/api
# The API key belongs in a credentials block, not here: see `prefect block register -m prefect_qruntime.blocks`.
"""
_NEXT = """\
Next:
  prefect server start                              # in a terminal of its own
  export PREFECT_API_URL=http://127.0.0.1:4200/api
  prefect block register -m prefect_qruntime.blocks
  prefect work-pool create quantum --type process
  prefect --no-prompt deploy --all
  prefect worker start --pool quantum               # in a terminal of its own
  prefect deployment run run-circuits/circuits-on-demand --watch
"""


def init(
    folder: Annotated[Path, Parameter(help="Where to write the files.")] = Path(),
    /,
    *,
    force: Annotated[bool, Parameter(help="Overwrite existing files.")] = False,
) -> int:
    """Write a deployment file for the installed flows, example circuits, automations and an .env example.

    Changes nothing in Prefect and sends nothing. If a file exists already, writes nothing; the exit code is 2.
    """
    contents = _contents()
    if not force and (there := [name for name in contents if (folder / name).exists()]):
        raise InvalidInput(
            f"{folder.resolve()} already has {', '.join(there)}; nothing was written.",
            solution="Choose another folder, or overwrite with --force.",
        )
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    console = Console()
    console.print(f"Wrote {', '.join(contents)}.", highlight=False, soft_wrap=True)
    console.print(_NEXT, highlight=False, soft_wrap=True, markup=False)
    return 0


def _contents() -> dict[str, str]:
    """Return the text of each file by its path in the folder."""
    flows, automations = files("prefect_qruntime.flows"), files("prefect_qruntime.automations")
    deployments = (flows / "prefect.yaml").read_text(encoding="utf-8")
    deployments = re.sub(r"\bflows/(\w+)\.py:(\w+)", r"prefect_qruntime.flows.\1:\2", deployments)
    deployments = deployments.replace("flows/circuits/", "circuits/").replace(
        "of the flows in flows/ on a process work pool. In a clone of this repository:",
        "of the installed flows on a process work pool:",
    )
    found = {"prefect.yaml": deployments, ".env.example": _ENV}
    found |= _texts(flows / "circuits", "circuits", ".qasm") | _texts(automations, "automations", ".yaml")
    return found


def _texts(folder: Traversable, name: str, suffix: str) -> dict[str, str]:
    return {
        f"{name}/{one.name}": one.read_text(encoding="utf-8")
        for one in sorted(folder.iterdir(), key=lambda one: one.name)
        if one.name.endswith(suffix)
    }
