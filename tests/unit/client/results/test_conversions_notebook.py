"""Results in a notebook: short repr, escaped HTML, pictures."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.client.transport.spool import StoredBody
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.models import Provenance

EVIL = "<script>alert(1)</script>\x1b[2J"


def _sampler(samples: list[str], bits: int = 2, *, job_id: str = "d1", pubs: int = 1) -> JobResult:
    pub = {"data": {"c": {"samples": samples, "num_bits": bits}}, "metadata": {}}
    return JobResult.from_body({"results": [pub] * pubs}, job_id=job_id, program_id="sampler")


def _estimator(values: Any, errors: Any) -> JobResult:
    pub = {"data": {"evs": values, "stds": errors}, "metadata": {}}
    return JobResult.from_body({"results": [pub]}, job_id="d1", program_id="estimator")


def test_repr_is_short_whatever_the_size() -> None:
    result = _sampler(["0x1"] * 10_000)
    assert repr(result) == str(result) == "JobResult('d1', program_id='sampler', 1 PUB)"
    assert repr(_sampler([], pubs=2)) == "JobResult('d1', program_id='sampler', 2 PUBs)"
    assert repr(JobResult.from_body({"results": 3}, job_id="d1")) == "JobResult('d1', not readable)"
    assert repr(JobResult(file=_file(), job_id="d2")) == "JobResult('d2', in a file of 5,000,000 bytes)"


def _file() -> StoredBody:
    return StoredBody(path="/no/such/file", size=5_000_000, sha256="0" * 64)


def test_html_shows_outcomes_and_values() -> None:
    page = _sampler(["0x3", "0x0", "0x3"])._repr_html_()
    assert page.index(">11<") < page.index(">00<")
    assert "PUB 0" in page
    page = _estimator([0.5, -1.0], [0.01, 0.02])._repr_html_()
    for text in (">0.5<", ">0.02<", "standard error"):
        assert text in page
    assert "1 more PUBs" not in _sampler(["0x1"], pubs=4)._repr_html_()
    assert "2 more PUBs" in _sampler(["0x1"], pubs=6)._repr_html_()
    assert "…" in _sampler([hex(n) for n in range(40)], 6)._repr_html_()


@pytest.mark.parametrize(
    "result",
    [
        _sampler(["0x1"], job_id=EVIL),
        JobResult.from_body({"results": 3}, job_id=EVIL),
        JobResult.from_body({EVIL: 1}, job_id="d1", program_id=EVIL),
        JobResult.from_body({"results": [{"data": {EVIL: 3}, "metadata": {}}]}, job_id="d1"),
        JobResult(file=_file(), job_id=EVIL),
    ],
)
def test_html_escapes_and_never_fails(result: JobResult) -> None:
    page = result._repr_html_()
    assert "<script" not in page
    assert "\x1b" not in page
    assert page.startswith("<div>")


def _axes() -> Any:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    return figure.subplots()


def test_counts_are_bars() -> None:
    axes = _axes()
    result = _sampler([hex(n) for n in range(40)] + ["0x5"] * 60, 6, job_id="d$1$")
    assert result.plot(ax=axes) is axes
    heights = [bar.get_height() for bar in axes.patches]
    assert len(heights) == 17
    assert sum(heights) == 100
    assert heights[-1] == 24
    assert [label.get_text() for label in axes.get_xticklabels()][-1] == "24 others"
    assert axes.get_title() == r"Job d\$1\$, PUB 0"


def test_values_have_error_bars() -> None:
    axes = _axes()
    _estimator([0.5, -1.0, 0.0], [0.01, 0.02, 0.03]).plot(ax=axes)
    assert len(axes.containers[0].lines[0].get_xdata()) == 3
    assert axes.containers[0].has_yerr
    axes = _axes()
    JobResult.from_body({"results": [{"data": {"evs": 0.5}, "metadata": {}}]}, job_id="d1").plot(ax=axes)
    assert not axes.containers[0].has_yerr


def test_a_figure_is_made_if_none_is_given() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    axes = _sampler(["0x1"]).plot()
    assert axes.get_ylabel() == "shots"
    pyplot.close("all")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(QuantumRuntimeError, match="needs matplotlib") as caught:
        _sampler(["0x1"]).plot()
    assert "prefect-qruntime[plot]" in str(caught.value)


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(InvalidInput, match="register"):
        _estimator(0.5, 0.1).plot(register="c", ax=_axes())
    with pytest.raises(InvalidInput, match="there is no PUB 3"):
        _sampler(["0x1"]).plot(3, ax=_axes())


@pytest.mark.parametrize("name", ["values", "keys", "items", "shape"])
def test_a_name_that_qiskit_uses_is_said_and_counts_work(name: str) -> None:
    pytest.importorskip("qiskit")
    body = {"results": [{"data": {name: {"samples": ["0x1"], "num_bits": 1}}, "metadata": {}}]}
    result = JobResult.from_body(body, job_id="d1")
    with pytest.raises(QuantumRuntimeError, match=f"data named '{name}'") as caught:
        result.to_primitive_result()
    assert "to_table()" in str(caught.value)
    assert result.counts() == result.counts(register=name) == {"1": 1}
    assert result.to_table()[0]["register"] == name


def test_a_dry_run_is_called_one() -> None:
    known = Provenance(job_id="d1", backend="mock_torino")
    result = JobResult(body={"results": []}, job_id="d1", provenance=known)
    assert repr(result) == "JobResult('d1', of a dry run: random, 0 PUBs)"
    assert "of a dry run: random" in result._repr_html_()
    real = result.model_copy(update={"provenance": known.model_copy(update={"backend": "ibm_torino"})})
    assert "dry run" not in repr(real)
