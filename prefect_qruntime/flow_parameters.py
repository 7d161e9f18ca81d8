"""Flow parameters that Prefect's server would refuse for their size, refused here by name.

Prefect keeps the parameters of a flow run in its database and takes at most 512 kB of them (its setting
`PREFECT_SERVER_API_MAX_PARAMETER_SIZE`). Its own error comes from the server and holds the whole circuit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect.settings import get_current_settings
from pydantic_core import to_json

from prefect_qruntime.errors import InvalidInput

__all__ = ["check_flow_parameters"]


def check_flow_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Check the size of a flow's parameters before they go to Prefect's server.

    Args:
        parameters: The parameters by name.

    Returns:
        The same as a dict.

    Raises:
        InvalidInput: They are too large as JSON; `field` names the largest.

    Example:
        ```python
        from prefect.deployments import run_deployment
        from prefect_qruntime import check_flow_parameters

        def start(circuits: list[str]) -> None:
            run_deployment("run-circuits/nightly", parameters=check_flow_parameters({"circuits": circuits}))
        ```
    """
    limit = get_current_settings().server.api.max_parameter_size
    found = dict(parameters)
    size = _size(found)
    if size > limit:
        sizes = {name: _size(value) for name, value in found.items()}
        largest = max(sizes, key=lambda name: sizes[name])
        raise InvalidInput(
            f"the flow's parameters have {size:,} bytes, {sizes[largest]:,} of them here; Prefect's server takes at "
            f"most {limit:,}. Give a large circuit as a file that the worker can read: 'file:/shared/circuit.qasm'",
            field=largest,
        )
    return found


def _size(value: Any) -> int:
    return len(to_json(value, fallback=repr))
