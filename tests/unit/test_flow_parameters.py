"""Files that flow parameters name: only inside allowed folders, only regular files, content never shown."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from prefect import flow

from prefect_qruntime import InvalidInput, check_flow_parameters, circuit_text
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.flow_parameters import (
    allowed_folders,
    allowed_path,
    limited_file_references,
    own_files,
    read_file,
)

SECRET = "SECRET0123456789abcdefghijABCDEFGHIJ0123"
BELL = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; c[0] = measure $0;'
SETTING = "PREFECT_INTEGRATIONS_QRUNTIME_ALLOWED_FOLDERS"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An allowed folder, which is the working directory, and one beside it."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        (folder / "sub").mkdir(parents=True)
        (folder / "bell.qasm").write_text(BELL)
        (folder / "sub" / "bell.qasm").write_text(BELL)
        (folder / "secret").write_text(SECRET)
    (tmp_path / "inside-too").mkdir()
    (tmp_path / "inside-too" / "bell.qasm").write_text(BELL)
    (inside / "link.qasm").symlink_to(outside / "bell.qasm")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside / "loop")
    (inside / "good.qasm").symlink_to(inside / "sub" / "bell.qasm")
    os.mkfifo(inside / "pipe")
    monkeypatch.chdir(inside)
    monkeypatch.delenv(SETTING, raising=False)
    return inside, outside


READABLE = ["bell.qasm", "sub/bell.qasm", "./sub/../bell.qasm", "good.qasm", "{inside}/bell.qasm", " bell.qasm\n"]
REFUSED = [
    "../outside/bell.qasm", "../outside/secret", "{outside}/bell.qasm", "link.qasm", "folder/bell.qasm", "loop", "pipe",
    "../inside-too/bell.qasm", "sub", ".", "secret", "no-such.qasm", "/etc/passwd", "/dev/zero", "/proc/self/environ",
    "/dev/stdin", "~/.bashrc", "", " ", "x" * 5000, "a\0b", "../../../../../../proc/1/environ",
]  # fmt: skip


@pytest.mark.parametrize("form", ["{}", "file:{}"])
@pytest.mark.parametrize("name", READABLE)
def test_what_is_inside_is_read(places: tuple[Path, Path], name: str, form: str) -> None:
    given = name.format(inside=places[0])
    assert circuit_text(form.format(given.strip() if form != "{}" else given)) == BELL


@pytest.mark.parametrize("form", ["{}", "file:{}"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_outside_or_no_circuit_is_refused_without_its_content(
    places: tuple[Path, Path], name: str, form: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        circuit_text(form.format(name.format(outside=places[1])), field="circuits[0]")
    error = caught.value
    assert error.field == "circuits[0]"
    assert SECRET[:8] not in str(error)
    assert len(str(error)) < 1000
    assert "\n" not in str(error)
    assert error.__cause__ is None


@pytest.mark.parametrize(
    "name", ["../outside/bell.qasm", "../outside/no-such", "link.qasm", "folder/no-such", "folder/x/y", "/etc/no-such"]
)
def test_an_error_does_not_say_whether_a_file_outside_exists(places: tuple[Path, Path], name: str) -> None:
    with pytest.raises(InvalidInput, match="is outside the folders"):
        circuit_text(name)


parts = st.lists(st.sampled_from(["..", ".", "sub", "folder", "inside", "outside", "secret", "bell.qasm"]), max_size=6)


@given(parts)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_spelling_of_a_path_leads_out(places: tuple[Path, Path], parts: list[str]) -> None:
    try:
        text = read_file(Path(*parts), field="x")
    except InvalidInput:
        return
    assert text in (BELL, SECRET)
    assert Path(*parts).resolve().is_relative_to(places[0].resolve())


def test_the_setting_replaces_the_working_directory(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = places
    monkeypatch.setenv(SETTING, str(outside))
    assert circuit_text(str(outside / "bell.qasm")) == BELL
    with pytest.raises(InvalidInput, match=SETTING):
        circuit_text(str(inside / "bell.qasm"))
    monkeypatch.setenv(SETTING, f"{inside}{os.pathsep}{outside}")
    assert allowed_folders() == (inside, outside)
    monkeypatch.setenv(SETTING, f'["{inside}"]')
    assert allowed_folders() == (inside,)
    monkeypatch.setenv(SETTING, "")
    assert allowed_folders() == ()


def test_a_removed_working_directory_allows_nothing(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = places
    gone = inside / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert allowed_folders() == allowed_folders("write") == ()
    with own_files():
        assert circuit_text(str(inside / "bell.qasm")) == BELL
    with pytest.raises(InvalidInput, match="working directory, which was removed"):
        circuit_text("bell.qasm")
    monkeypatch.setenv(SETTING, str(outside))
    assert circuit_text(str(outside / "bell.qasm")) == BELL
    with pytest.raises(InvalidInput, match=SETTING):
        circuit_text(str(inside / "bell.qasm"))


def test_the_root_is_no_working_directory(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert allowed_folders() == ()
    with pytest.raises(InvalidInput):
        circuit_text("etc/passwd")


@pytest.mark.parametrize("name", ["out.csv", "sub/new/out.csv", "{inside}/out.csv", "good.qasm"])
def test_where_may_be_written(places: tuple[Path, Path], name: str) -> None:
    path = allowed_path(Path(name.format(inside=places[0])), field="table", access="write")
    assert path.is_relative_to(places[0])


@pytest.mark.parametrize(
    "name", ["../out.csv", "link.qasm", "folder/out.csv", "{outside}/out.csv", "a\nb.csv", "loop", "loop/out.csv"]
)
def test_where_may_not_be_written(places: tuple[Path, Path], name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        allowed_path(Path(name.format(outside=places[1])), field="table", access="write")
    assert caught.value.field == "table"


def test_too_large_a_file_is_not_read(places: tuple[Path, Path]) -> None:
    with (places[0] / "large").open("wb") as file:
        file.truncate(300_000_001)
    with pytest.raises(InvalidInput, match="300,000,001 bytes"):
        circuit_text("large")


def test_references_in_pubs_are_limited_and_paths_of_the_caller_are_not(places: tuple[Path, Path]) -> None:
    inside, outside = places
    with limited_file_references():
        assert make_spec([f"file:{inside}/bell.qasm"], backend="b")
        assert make_spec([outside / "bell.qasm"], backend="b"), "a Path object was made by the flow's own code"
        with pytest.raises(InvalidInput, match="outside the folders"):
            make_spec([f"file:{outside}/bell.qasm"], backend="b")
    assert make_spec([f"file:{outside}/bell.qasm"], backend="b"), "code without Prefect is not limited"


@pytest.mark.parametrize(
    "make", [lambda text: text, lambda text: f"// note\n{text}", lambda text: text.replace("; ", ";\n")]
)
def test_text_is_text(places: tuple[Path, Path], make: Callable[[str], str]) -> None:
    assert circuit_text(make(BELL)) == make(BELL)


def test_the_folder_of_the_flow_may_be_read_and_not_written(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from prefect_qruntime import flow_parameters

    @flow
    def mine() -> None: ...

    running = SimpleNamespace(get=lambda: SimpleNamespace(flow=mine))
    monkeypatch.setattr(flow_parameters, "FlowRunContext", running)
    here = Path(__file__).resolve().parent
    assert allowed_folders() == (places[0], here)
    assert allowed_folders("write") == (places[0],)


@pytest.mark.parametrize("wrong", [None, 7, b"OPENQASM 3.0;", [BELL], {"a": BELL}, object()])
def test_what_is_no_text_is_no_circuit(wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="must be text or a path") as caught:
        circuit_text(wrong, field="circuits[0]")
    assert caught.value.field == "circuits[0]"


@pytest.mark.parametrize("wrong", [None, 7, "text", [1], [["a", 1]]])
def test_parameters_of_a_flow_are_a_dict(wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="must be a dict") as caught:
        check_flow_parameters(wrong)
    assert caught.value.field == "parameters"
