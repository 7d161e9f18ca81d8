"""Flow parameters that come from a form: their size, the circuits they name, and the files they may touch.

Prefect keeps the parameters of a flow run in its database and takes at most 512 kB of them (its setting
`PREFECT_SERVER_API_MAX_PARAMETER_SIZE`). Its own error comes from the server and holds the whole circuit.

Who may start a flow from the UI need not be allowed to read the worker's files. So a path that is a flow parameter is
opened only inside allowed folders, only if it is a regular file of limited size, and no error shows its content. On the
command line the caller's own files are read, so the folders do not matter there; all else does.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from prefect.context import FlowRunContext
from prefect.settings import get_current_settings
from pydantic_core import to_json

from prefect_qruntime.client.inputs.qasm import limit_references, path_of, read_path, scan
from prefect_qruntime.client.inputs.spec import MAX_PAYLOAD_BYTES
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.settings import current_settings

__all__ = [
    "allowed_folders",
    "allowed_path",
    "check_flow_parameters",
    "circuit_text",
    "limited_file_references",
    "own_files",
    "read_file",
]

_own_files: ContextVar[bool] = ContextVar("qruntime_own_files", default=False)

_SETTING = "PREFECT_INTEGRATIONS_QRUNTIME_ALLOWED_FOLDERS"


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
    if not isinstance(parameters, Mapping):
        raise InvalidInput(f"must be a dict, not {type(parameters).__name__}", field="parameters")
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
    try:
        return len(to_json(value, fallback=repr))
    except (ValueError, RecursionError):
        raise InvalidInput("cannot be sent as JSON: nested too deeply, or not UTF-8 text", field="parameters") from None


def allowed_folders(access: Literal["read", "write"] = "read") -> tuple[Path, ...]:
    """The folders in which flow parameters may name files, with symbolic links resolved.

    They are those of the setting `allowed_folders`; without it, the working directory. The folder of the running
    flow's own file may be read too, as the flow's example data is there.

    Args:
        access: `read` or `write`.

    Returns:
        The folders. The root of the file system never counts as a working directory: it would allow every file.
        A removed one does not either. Inside `own_files` it is the root alone.
    """
    if _own_files.get():
        return (Path("/").absolute(),)
    setting = current_settings().allowed_folders
    found = list(setting) if setting is not None else []
    if setting is None:
        with suppress(FileNotFoundError):
            found = [here] if (here := Path.cwd()) != here.parent else []
    own = _folder_of_flow()
    if access == "read" and own is not None:
        found.append(own)
    return tuple(dict.fromkeys(folder.expanduser().resolve() for folder in found))


def _folder_of_flow() -> Path | None:
    running = FlowRunContext.get()
    if running is None or running.flow is None:
        return None
    try:
        file = inspect.getsourcefile(running.flow.fn)
    except TypeError:
        return None
    folder = Path(file).resolve().parent if file and Path(file).is_file() else None
    return folder if folder is not None and folder != folder.parent else None


def allowed_path(path: Path, *, field: str, access: Literal["read", "write"] = "read") -> Path:
    """The real path of a file that a flow parameter names, if it is inside an allowed folder.

    Args:
        path: The parameter's value; a relative path starts at the working directory.
        field: Name of the parameter, for the error message.
        access: `read` or `write`.

    Returns:
        The absolute path without symbolic links.

    Raises:
        InvalidInput: The file is, or a symbolic link leads, outside the allowed folders. The message does not say
            whether such a file exists.
    """
    return _inside(path, allowed_folders(access), field=field)


def _inside(path: Path, folders: tuple[Path, ...], *, field: str) -> Path:
    shown = repr(str(path)[:200])
    try:
        found = path.resolve()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found.stat()  # from Python 3.13 on, it is this that finds symbolic links which lead to themselves
    except FileNotFoundError:
        raise InvalidInput(f"{shown} begins at the working directory, which was removed", field=field) from None
    except (OSError, ValueError, RuntimeError):
        raise InvalidInput(f"{shown} is not a path", field=field) from None
    if not str(path).isprintable():
        raise InvalidInput(f"{shown} is not a path: it holds control characters", field=field)
    if not any(found.is_relative_to(folder) for folder in folders):
        listed = ", ".join(map(str, folders)) or "none"
        raise InvalidInput(
            f"{shown} is outside the folders that flow parameters may use ({listed}). Move the file there, or name "
            f"its folder in the setting {_SETTING} where the flow runs",
            field=field,
        )
    return found


def read_file(path: Path, *, field: str, limit: int = MAX_PAYLOAD_BYTES) -> str:
    """Read a text file that a flow parameter names.

    Args:
        path: The parameter's value.
        field: Name of the parameter, for the error message.
        limit: Most bytes to read.

    Returns:
        The text.

    Raises:
        InvalidInput: The file is outside the allowed folders, is a device, a pipe or a folder, is too large, or is
            not UTF-8 text. The message never holds the file's content.
    """
    return read_path(allowed_path(path, field=field), field=field, limit=limit)


def circuit_text(circuit: str, *, field: str = "circuit") -> str:
    """The OpenQASM text of a circuit that a flow parameter gives as text, as a path, or as `file:<path>`.

    A path also suits circuits beyond the 512 kB that Prefect takes for all parameters of a run. What has neither a
    semicolon nor a line break is a path.

    Args:
        circuit: The parameter.
        field: Its name, for the error message.

    Returns:
        The text.

    Raises:
        InvalidInput: The file is outside the allowed folders or cannot be read, or the text is not OpenQASM. The
            message never holds a file's content.

    Example:
        ```python
        from prefect import flow
        from prefect_qruntime import circuit_text, load_credentials, submit_job

        @flow
        def submit(credentials_block: str, circuit: str, backend: str) -> str:
            return submit_job(load_credentials(credentials_block), [circuit_text(circuit)], backend=backend).id
        ```
    """
    path = path_of(circuit, field=field)
    if path is None and not isinstance(circuit, str):
        raise InvalidInput(f"must be text or a path, not {type(circuit).__name__}", field=field)
    if path is None and not circuit.strip():
        raise InvalidInput("the circuit is empty", field=field)
    if path is None and ";" not in circuit and "\n" not in circuit.strip():
        path = Path(circuit.strip())
    text = circuit if path is None else read_file(path, field=field)
    scan(text, field=field)
    return text


@contextmanager
def own_files() -> Iterator[None]:
    """Inside this block, files in every folder may be named: a command runs with the rights of the one who calls it."""
    token = _own_files.set(True)
    try:
        yield
    finally:
        _own_files.reset(token)


@contextmanager
def limited_file_references() -> Iterator[None]:
    """Inside this block, `file:` references of PUBs are read from allowed folders only."""
    folders = allowed_folders()

    def inside(path: Path, field: str) -> Path:
        return _inside(path, folders, field=field)

    with limit_references(inside):
        yield
