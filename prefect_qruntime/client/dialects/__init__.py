"""The two dialects of one service: hosts, headers, bodies and `params`, one file a dialect."""

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.dialects.base import Dialect
from prefect_qruntime.client.dialects.cloud import Cloud, v2_params
from prefect_qruntime.client.dialects.legacy import Legacy, v1_params
from prefect_qruntime.errors import InvalidInput

__all__ = ["Cloud", "Dialect", "Legacy", "dialect_of", "v1_params", "v2_params"]

_DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (Cloud(), Legacy())}


def dialect_of(connection: Connection) -> Dialect:
    """The dialect a connection speaks."""
    try:
        return _DIALECTS[connection.dialect]
    except KeyError:
        raise InvalidInput(f"must be one of {sorted(_DIALECTS)}, not {connection.dialect!r}", field="dialect") from None
