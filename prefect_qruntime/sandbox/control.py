"""`Control`: inspect the sandbox's state, inject faults and steer jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

Record = dict[str, Any]


class ControlError(Exception):
    """Raised if the sandbox refuses a control call: an unknown id or option, or a wrong value."""


class Control:
    """Inspect and steer a sandbox: its requests, jobs, sessions, options and faults.

    Thread-safe. In the process of the server it is `Sandbox.control`; elsewhere `Control.connect(url)` gives the
    same over HTTP. All times are service seconds, timestamps service seconds since the epoch.

    Example:
        >>> control.add_fault("POST", "/jobs", drop="after")  # the job exists, the answer is lost
        >>> control.jobs(tag="mine")
    """

    def __init__(self, call: Callable[[str, Mapping[str, Any]], Any]) -> None:
        self._call = call

    @classmethod
    def connect(cls, url: str, token: str | None = None) -> Control:
        """Return the control of a sandbox in another process.

        Args:
            url: The sandbox's `url`.
            token: The sandbox's `control_token`; found by itself if the sandbox runs on this machine as this user.
        """
        import httpx
        import orjson

        from prefect_qruntime.sandbox import control_token

        client = httpx.Client(base_url=url.rstrip("/"), trust_env=False, timeout=60.0)

        def call(name: str, fields: Mapping[str, Any]) -> Any:
            # Looked up at each call: the server may have been started again on the same port.
            headers = {
                "content-type": "application/json",
                control_token.HEADER: control_token.find(url) if token is None else token,
            }
            answer = client.post(f"/_control/{name}", content=orjson.dumps(dict(fields)), headers=headers)
            body = answer.json()
            if answer.status_code != 200:
                raise ControlError(body["error"])
            return body["result"]

        return cls(call)

    # --- state

    def jobs(self, **filters: Any) -> list[Record]:
        """Return the jobs, oldest first.

        Args:
            **filters: Wanted values of the shown fields (`status`, `backend`, `session_id`, `user` …), or `tag`.
        """
        return cast(list[Record], self._call("jobs", filters))

    def job(self, job_id: str) -> Record:
        """Return one job: id, status, reason, tags, backend, session, user, times, usage and params."""
        return cast(Record, self._call("job", {"job_id": job_id}))

    def sessions(self) -> list[Record]:
        """Return the sessions, oldest first."""
        return cast(list[Record], self._call("sessions", {}))

    def session(self, session_id: str) -> Record:
        """Return one session: id, state, mode, backend, accepting_jobs, jobs and history."""
        return cast(Record, self._call("session", {"session_id": session_id}))

    def open_sessions(self) -> list[Record]:
        """Return the sessions that are not closed."""
        return cast(list[Record], self._call("open_sessions", {}))

    def journal(self, method: str | None = None, path: str | None = None) -> list[Record]:
        """Return the requests so far, without headers and bodies.

        Args:
            method: Only this one; websockets have `WS`.
            path: An `fnmatch` pattern on the dialect-free path.

        Returns:
            n, t, method, path (with its query), dialect, status, connection (the client's port) and the fault
            that acted. The status is 0 for a connection closed without an answer, `None` before the answer.
        """
        return cast(list[Record], self._call("journal", {"method": method, "path": path}))

    def clear_journal(self) -> None:
        """Clear the journal."""
        self._call("clear_journal", {})

    def usage(self, crn: str | None = None) -> Record:
        """Return the usage of an instance (the first one) as `GET /instances/usage` does."""
        return cast(Record, self._call("usage", {"crn": crn}))

    def tcp_connections(self) -> int:
        """Return how many TCP connections were accepted since the start or reset."""
        return int(self._call("tcp_connections", {}))

    def iam_calls(self) -> int:
        """Return how many tokens were asked for."""
        return int(self._call("iam_calls", {}))

    def now(self) -> float:
        """Return the service's time in seconds since the epoch."""
        return float(self._call("now", {}))

    # --- faults

    def add_fault(
        self,
        method: str | None = None,
        path: str = "*",
        *,
        status: int | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
        retry_after: float | str | None = None,
        delay: float = 0.0,
        drop: str | None = None,
        after_handler: bool = False,
        times: int | None = 1,
        skip: int = 0,
        ws_close: int | None = None,
        ws_silence: bool = False,
    ) -> int:
        """Inject a fault into matching requests.

        Args:
            method: HTTP method, `WS` for websockets, `None` for all.
            path: An `fnmatch` pattern on the dialect-free path, such as `/jobs/*/results` or `/identity/token`.
            status: Answer this instead of running the handler.
            body: The answer's body: JSON, or a string for plain text; else the service's error container.
            headers: Extra headers of the answer.
            retry_after: Value of a `Retry-After` header.
            delay: Service seconds before the answer.
            drop: `before` closes the connection without running the handler, `after` runs it first, `middle`
                closes it in the middle of the body.
            after_handler: With `status`: run the handler, then answer the status.
            times: How many requests; `None` for all.
            skip: Let this many matches through first.
            ws_close: Close the socket with this code after the acknowledgement.
            ws_silence: Acknowledge, then neither send anything nor answer pings.

        Returns:
            The fault's id, which the journal shows where it acted.

        Raises:
            ControlError: If the combination makes no sense.
        """
        fields = {name: value for name, value in locals().items() if name != "self"}
        return int(self._call("add_fault", fields))

    def faults(self) -> list[Record]:
        """Return the faults that have not fired yet."""
        return cast(list[Record], self._call("faults", {}))

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._call("clear_faults", {})

    # --- time and jobs

    def set_clock_scale(self, scale: float) -> None:
        """Make `scale` service seconds pass per real second; pending timers follow."""
        self.set_option("clock_scale", scale)

    def advance(self, seconds: float) -> None:
        """Let service time pass at once: what is due meanwhile happens in order, each at its own moment.

        With a `clock_scale` near 0 no time passes otherwise, so a test of days is the same on every machine.
        """
        self._call("advance", {"seconds": seconds})

    def set_times(
        self, queue_time: float | None = None, run_time: float | None = None, backend: str | None = None
    ) -> None:
        """Change how long coming jobs queue and run, everywhere or on one backend."""
        self._call("set_times", {"queue_time": queue_time, "run_time": run_time, "backend": backend})

    def set_backend(self, name: str, *, status: str | None = None, queue_length: int | None = None) -> None:
        """Make a backend online, paused or offline, or let it show a queue length."""
        self._call("set_backend", {"name": name, "status": status, "queue_length": queue_length})

    def add_backend(
        self, name: str, *, qubits: int = 27, noisy: bool = True, basis_gates: Sequence[str] | None = None
    ) -> None:
        """Add a backend under a name of your own, with its mock backend; `reset` removes both.

        Args:
            name: For instance `ibm_example`; the mock backend is then `mock_example`.
            qubits: At most 27 of a noisy backend, which has a heavy-hexagon map, else 32.
            noisy: Whether gates and readout have errors; without, it is a simulator with all qubits coupled.
            basis_gates: Its native gates; those of `sandbox_noisy` or `sandbox_ideal` if not given.

        Raises:
            ControlError: If a value does not fit or the name is taken.
        """
        fields = {"name": name, "qubits": qubits, "noisy": noisy, "basis_gates": basis_gates and list(basis_gates)}
        self._call("add_backend", fields)

    def script_job(
        self,
        *,
        status: str = "Failed",
        reason: str = "",
        reason_code: int | None = None,
        results_text: str | None = None,
        times: int = 1,
    ) -> None:
        """Decide how the next created jobs end.

        Args:
            status: `Completed`, `Failed`, `Cancelled`, `Ran too long`, or any other text, in which the job then
                stays until it is finished or cancelled.
            reason: The reason in its state.
            reason_code: The code in its state.
            results_text: What `results` answers for a failed job; the reason if not given.
            times: How many jobs.
        """
        fields = {name: value for name, value in locals().items() if name != "self"}
        self._call("script_job", fields)

    def hold(self) -> None:
        """Keep every job Queued or Running until `release`."""
        self._call("hold", {})

    def release(self) -> None:
        """Let the jobs continue."""
        self._call("release", {})

    def finish(self, job_id: str) -> Record:
        """Run one job to its end now, even if it is held, and return it."""
        return cast(Record, self._call("finish", {"job_id": job_id}))

    def wait_job(self, job_id: str, timeout: float = 30.0) -> Record:
        """Wait until a job has ended and return it.

        Args:
            job_id: The job.
            timeout: Real seconds.

        Raises:
            ControlError: If it has not ended by then.
        """
        return cast(Record, self._call("wait_job", {"job_id": job_id, "timeout": timeout}))

    # --- the rest

    def revoke_tokens(self) -> None:
        """Revoke all issued tokens: they answer 401 from now on."""
        self._call("revoke_tokens", {})

    def replace_key(self) -> None:
        """Give the first user another API key. The old one is refused from now on, and so are all issued tokens."""
        self._call("replace_key", {})

    def set_usage(self, crn: str | None = None, consumed: float | None = None, limit: float | None = None) -> None:
        """Change what an instance (the first one) has used and may use, in QPU seconds."""
        self._call("set_usage", {"crn": crn, "consumed": consumed, "limit": limit})

    def set_option(self, name: str, value: Any) -> None:
        """Change an option of the sandbox while it runs; see `Settings` for the names."""
        self._call("set_option", {"name": name, "value": value})

    def reset(self) -> None:
        """Start over, with new API keys; see `Sandbox.reset`."""
        self._call("reset", {})
