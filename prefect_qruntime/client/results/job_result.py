"""Read what a job returned, in one shape for every dialect and wire form.

The body is kept as it came and read lazily: a small one in memory, a large one in a file that is decoded
when it is first used. Neither numpy nor qiskit is needed, except by `to_primitive_result`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from prefect_qruntime.client.encodings.arrays import (
    DECODE_LIMIT,
    Allowance,
    decode_value,
    list_shape,
    nested,
    whole_number,
)
from prefect_qruntime.client.encodings.registers import Register, flat_index, memory, tally
from prefect_qruntime.client.results.views import (
    PubView,
    counts_of,
    floats,
    frequencies,
    loads,
    pub_list,
    top_metadata,
    view_pub,
)
from prefect_qruntime.client.transport.spool import StoredBody
from prefect_qruntime.errors import InvalidInput, NotFound, QuantumRuntimeError
from prefect_qruntime.models import Provenance
from prefect_qruntime.redact import shown

if TYPE_CHECKING:
    from qiskit.primitives import PrimitiveResult

__all__ = ["JobResult"]


class JobResult(BaseModel):
    """The result of one job. Frozen; round-trips through JSON and pickle.

    A large result is a reference to a file: it pickles small, costs no memory until it is first read, and
    then as much as the decoded body until the object is released.

    Bitstrings have the most significant bit first, as Qiskit prints them. A PUB with an array of
    parameter points needs `index=` to pick one.

    Attributes:
        body: The decoded JSON body of a result that is kept in memory; read `raw`, which knows both kinds.
        file: The file that holds the body instead.
        job_id: The job.
        program_id: The program, if known.
        widths: Classical bits of each PUB, if known: a legacy result with integers does not say how long its
            bitstrings are.
        decode_limit: Most bytes that the encoded arrays read at once may unfold to (1 GiB).
        provenance: Which calibration, backend, payload and packages it comes from, if known.

    Example:
        ```python
        from prefect_qruntime.client.results.job_result import JobResult

        body = '{"results": [{"data": {"c": {"samples": ["0x3", "0x0"], "num_bits": 2}}, "metadata": {}}]}'
        result = JobResult.from_body(body, job_id="d1")
        assert result.counts() == {"11": 1, "00": 1}
        ```
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    body: Any = Field(default=None, repr=False)
    file: StoredBody | None = None
    job_id: str
    program_id: str | None = None
    widths: tuple[int | None, ...] = ()
    decode_limit: int = Field(default=DECODE_LIMIT, gt=0, repr=False)
    provenance: Provenance | None = None

    @classmethod
    def from_body(
        cls,
        body: bytes | str | dict[str, Any] | list[Any],
        *,
        job_id: str,
        program_id: str | None = None,
        widths: tuple[int | None, ...] = (),
        decode_limit: int = DECODE_LIMIT,
    ) -> JobResult:
        """Read the body of `GET …/results`, or one already decoded.

        Raises:
            QuantumRuntimeError: The text is not JSON.
        """
        raw: Any = body
        if isinstance(body, bytes | bytearray | str):
            raw = loads(body, job_id)
        return cls(body=raw, job_id=job_id, program_id=program_id, widths=tuple(widths), decode_limit=decode_limit)

    @property
    def raw(self) -> Any:
        """The decoded JSON body.

        Raises:
            NotFound: The file of a large result is gone or was changed; it says how to get another.
            QuantumRuntimeError: The body is not JSON.
        """
        return self.body if self.file is None else self._from_file

    @cached_property
    def _from_file(self) -> Any:
        def decoded(view: memoryview) -> Any:
            return loads(view, self.job_id)

        assert self.file is not None  # noqa: S101 - `raw` checks
        try:
            return self.file.read(decoded)
        except (OSError, ValueError) as error:
            reason = str(error)
        return self._restored(reason).read(decoded)

    def _restored(self, reason: str) -> StoredBody:
        """Another copy of the body, if its file cannot be used."""
        raise NotFound(
            f"the file with the result of job {self.job_id} is not, or no longer, on this machine: {reason}",
            solution=f"Fetch it again by the job's id: fetch_results(credentials, {self.job_id!r}).",
            job_id=self.job_id,
        )

    def in_memory(self) -> JobResult:
        """The same result with its body in memory, whatever its size."""
        fields = {name: getattr(self, name) for name in JobResult.model_fields}
        return JobResult(**{**fields, "body": self.raw, "file": None})

    def __iter__(self) -> Generator[tuple[str, Any], None, None]:
        """The fields and their values, without the body: Prefect looks for futures in each value of a task's input.

        A million shots would take it 10 s at each call of a task.
        """
        yield from ((name, value) for name, value in super().__iter__() if name != "body")

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        # The decoded body is left out: a reference must stay small.
        kept = {name: value for name, value in state["__dict__"].items() if name not in ("_from_file", "_last_view")}
        return {**state, "__dict__": kept}

    @property
    def num_pubs(self) -> int:
        """Number of PUB results; 0 for programs that have none (see `raw`)."""
        with self._reading():
            return len(pub_list(self.raw))

    def registers(self, pub: int = 0) -> dict[str, int]:
        """Names of the classical registers and their bits; empty for estimator and legacy results."""
        return {name: register.num_bits for name, register in self._view(pub).registers.items()}

    def shape(self, pub: int = 0) -> tuple[int, ...]:
        """Shape of the PUB's points: `()` for one, `(3,)` for three."""
        view = self._view(pub)
        if view.shape is not None:
            return view.shape
        for register in view.registers.values():
            return register.shape
        if "evs" not in view.fields:
            return ()
        return list_shape(self.field("evs", pub))

    def counts(
        self, pub: int = 0, register: str | None = None, *, index: int | tuple[int, ...] | None = None
    ) -> dict[str, int]:
        """Bitstring → shots, the most frequent first.

        Args:
            pub: Which PUB.
            register: Which classical register. None takes the only one, or joins all: the first register
                makes the right end of the bitstring, as Qiskit's `join_data` does.
            index: Which point of a PUB with several.

        Raises:
            InvalidInput: No such PUB, register or point, or `index` is missing.
            QuantumRuntimeError: The result has no bitstrings, or is damaged.
        """
        view = self._view(pub)
        with self._reading(pub):
            if view.quasi is not None:
                if register is not None:
                    raise InvalidInput("a legacy result joins all registers and names none", field="register")
                self._point((), index, pub)  # each point is a PUB of its own
                return counts_of(view.quasi, self._quasi_shots(view, pub))
            chosen = self._registers(view, pub, register)
            return tally(chosen, self._point(chosen[0].shape, index, pub))

    def counts_array(self, pub: int = 0, register: str | None = None) -> Any:
        """`counts` for all points: nested lists of dicts in the PUB's shape, one dict if it is `()`."""
        view = self._view(pub)
        if view.quasi is not None:
            return self.counts(pub, register)
        with self._reading(pub):
            chosen = self._registers(view, pub, register)
            shape = chosen[0].shape
            return nested([tally(chosen, point) for point in range(prod(shape))], shape)

    def memory(
        self, pub: int = 0, register: str | None = None, *, index: int | tuple[int, ...] | None = None
    ) -> list[str]:
        """The bitstring of each shot in the order measured. Arguments and errors as `counts`."""
        view = self._view(pub)
        if view.quasi is not None:
            raise QuantumRuntimeError("a legacy result holds no single shots", job_id=self.job_id)
        with self._reading(pub):
            chosen = self._registers(view, pub, register)
            return memory(chosen, self._point(chosen[0].shape, index, pub))

    @property
    def quasi_dists(self) -> list[Any]:
        """Bitstring → (quasi-)probability for each PUB; nested lists for a PUB with several points.

        The legacy service's own quasi-probabilities may be slightly negative; from V2 results they
        are relative frequencies.
        """
        found: list[Any] = []
        for pub in range(self.num_pubs):
            view = self._view(pub)
            found.append(dict(view.quasi) if view.quasi is not None else frequencies(self.counts_array(pub)))
        return found

    def is_estimator(self, pub: int = 0) -> bool:
        """Whether the PUB's data are expectation values."""
        return "evs" in self._view(pub).fields

    def expectation_values(self, pub: int = 0) -> Any:
        """The estimator's values: a float, or nested lists in the PUB's shape; NaN for one that is not known.

        Raises:
            QuantumRuntimeError: The PUB has none.
        """
        with self._reading(pub):
            return floats(self.field("evs", pub))

    def standard_errors(self, pub: int = 0) -> Any:
        """Standard errors of `expectation_values`, in the same shape; None if the service gave none."""
        with self._reading(pub):
            found = self.field("stds", pub) if "stds" in self._view(pub).fields else None
            return None if found is None else floats(found)

    def field(self, name: str, pub: int = 0) -> Any:
        """Any field of a PUB's data that is not a register, for instance `ensemble_standard_error`.

        Raises:
            QuantumRuntimeError: The PUB has no such field.
        """
        view = self._view(pub)
        if name not in view.fields:
            known = ", ".join([*view.fields, *view.registers]) or "nothing"
            raise QuantumRuntimeError(f"PUB {pub} has no {shown(name)}, but {known}", job_id=self.job_id)
        with self._reading(pub):
            return decode_value(view.fields[name], allowance=Allowance(self.decode_limit))

    def arrays(self, pub: int = 0) -> dict[str, Any]:
        """All fields of a PUB's data that are not registers, by name: expectation values, or kerneled points."""
        return {name: self.field(name, pub) for name in self._view(pub).fields}

    def shots(self, pub: int = 0) -> int | None:
        """Shots of each point; for the estimator what its metadata says, or None."""
        view = self._view(pub)
        with self._reading(pub):
            for register in view.registers.values():
                return len(register.keys(0)) if prod(register.shape) else 0
        shots = view.metadata.get("shots") if isinstance(view.metadata, dict) else None
        return int(shots) if isinstance(shots, int | float) and shots % 1 == 0 else None

    def metadata(self, pub: int | None = None) -> Any:
        """Metadata of the whole result, or of one PUB, with encoded values decoded."""
        encoded = top_metadata(self.raw) if pub is None else self._view(pub).metadata
        with self._reading(pub):
            return decode_value(encoded, allowance=Allowance(self.decode_limit))

    def to_table(self) -> list[dict[str, Any]]:
        """Rows of plain values for data pipelines; `pandas.DataFrame(result.to_table())` works.

        Columns: `pub`, `point` (None, an int, or a tuple), then `register`, `bitstring`, `count`,
        `probability`, or `ev`, `std`. Kerneled points: `pub`, `array`, `place` (in the array), `real`, `imag`.
        """
        from prefect_qruntime.client.results.views import rows

        with self._reading():
            return list(rows(self))

    def to_primitive_result(self) -> PrimitiveResult[Any]:
        """The result as Qiskit's own objects. Needs the extra `[qiskit]`.

        Raises:
            QuantumRuntimeError: qiskit is not installed, or the program has no PUBs.
        """
        from prefect_qruntime.client.results.conversions import primitive_result

        with self._reading():
            return primitive_result(self)

    def plot(
        self,
        pub: int = 0,
        *,
        register: str | None = None,
        index: int | tuple[int, ...] | None = None,
        ax: Any = None,
    ) -> Any:
        """Draw a PUB with matplotlib: counts as bars, expectation values with their standard errors.

        Needs the extra `[plot]`. At most 16 outcomes are drawn; the others together are one bar.

        Args:
            pub: Which PUB.
            register: Which classical register, as in `counts`.
            index: Which point of a sampler's PUB with several; an estimator's points are all drawn.
            ax: The matplotlib axes to draw into; None makes a figure.

        Returns:
            The axes.

        Raises:
            InvalidInput: As `counts`.
            QuantumRuntimeError: matplotlib is not installed, or the PUB has neither bitstrings nor values.
        """
        from prefect_qruntime.client.results.conversions import plot_result

        return plot_result(self, pub, register=register, index=index, ax=ax)

    def __repr__(self) -> str:
        from prefect_qruntime.client.results.conversions import describe

        return describe(self)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows."""
        from prefect_qruntime.client.results.conversions import result_html

        return result_html(self)

    @cached_property
    def _last_view(self) -> list[tuple[Any, int, PubView]]:
        # The last PUB is kept, because calls about one PUB usually follow each other: its registers unfold once.
        # Its place is read and written at one go, as threads may ask for different PUBs.
        return []

    def _view(self, pub: int) -> PubView:
        with self._reading(pub):
            raw, last = self.raw, self._last_view
            pub = pub if (number := whole_number(pub)) is None else number
            for kept, place, view in last[:]:
                if kept is raw and place == pub and type(pub) is int:
                    return view
            last[:] = []  # before the next one unfolds: two may be too large
            items = pub_list(raw)
            if not items:
                known = f" of program {self.program_id!r}" if self.program_id else ""
                raise QuantumRuntimeError(f"the result{known} has no PUBs; read `.raw`", job_id=self.job_id)
            if isinstance(pub, bool) or not isinstance(pub, int) or not 0 <= pub < len(items):
                raise InvalidInput(
                    f"there is no PUB {shown(pub)}; the result has PUBs 0 to {len(items) - 1}", field="pub"
                )
            width = self.widths[pub] if pub < len(self.widths) else None
            view = view_pub(raw, items[pub], pub, width=width, allowance=Allowance(self.decode_limit))
            last[:] = [(raw, pub, view)]
            return view

    def _registers(self, view: PubView, pub: int, register: str | None) -> list[Register]:
        if not view.registers:
            known = ", ".join(view.fields) or "nothing"
            raise QuantumRuntimeError(f"PUB {pub} has no bitstrings, but {known}", job_id=self.job_id)
        if register is None:
            return list(view.registers.values())
        # Qiskit's reader of OpenQASM 3 changes names that do not begin with one of a to z.
        for name in (register, f"esc_{register}"):
            if name in view.registers:
                return [view.registers[name]]
        raise InvalidInput(
            f"PUB {pub} has no register {shown(register)}, but {', '.join(view.registers)}", field="register"
        )

    def _point(self, shape: tuple[int, ...], index: Any, pub: int) -> int:
        if index is None:
            if not shape:
                return 0
            raise InvalidInput(
                f"PUB {pub} has points of shape {shape}: choose one, or use counts_array()", field="index"
            )
        try:
            return flat_index(index, shape)
        except IndexError as error:
            raise InvalidInput(str(error), field="index") from None

    def _quasi_shots(self, view: PubView, pub: int) -> int:
        shots = view.metadata.get("shots") if isinstance(view.metadata, dict) else None
        if isinstance(shots, bool) or not isinstance(shots, int | float) or shots < 1 or shots != int(shots):
            raise QuantumRuntimeError(
                f"the legacy result of PUB {pub} does not say its shots; use quasi_dists", job_id=self.job_id
            )
        return int(shots)

    @contextmanager
    def _reading(self, pub: int | None = None) -> Iterator[None]:
        """Turn every failure to read a body into one kind of error that names the job."""
        try:
            yield
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
            where = "" if pub is None else f" (PUB {pub})"
            raise QuantumRuntimeError(
                f"the result of job {self.job_id} cannot be read{where}: {error}", job_id=self.job_id
            ) from error
