"""Get IAM tokens: one exchange for all callers, renewed early, never written anywhere.

Facts (IBM Cloud docs, IAM identity API): a token lives at most an hour, there is no refresh grant,
`expires_in` is in seconds. We count from our own monotonic clock, so a wrong wall clock does no harm.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

import httpx

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.failures import Question
from prefect_qruntime.client.network_loop import SingleFlight
from prefect_qruntime.client.transport.exchange import exchange
from prefect_qruntime.client.transport.replies import accepted, no_answer
from prefect_qruntime.client.transport.retrying import RetryDeadlines, repeat
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.redact import register_secret

__all__ = ["TokenSource"]

_QUESTION = Question("token", "POST", "/identity/token")
_GRANT = "urn:ibm:params:oauth:grant-type:apikey"
# A token is not used in the last 2 % of its life (72 s of an hour), nor in its last second, short lives
# aside: a request must not expire on its way.
_MARGIN = 0.02
_SHORTEST_MARGIN = 1.0
# In the last fifth of a long life it is renewed in the background, so that an IAM outage of
# up to twelve minutes goes unnoticed.
_RENEW = 0.20
_LONG_LIFE = 300.0
# If our two clocks move apart by more seconds, the machine was suspended, while the monotonic one stood still, or the
# wall clock was set. Neither the token's age nor the service's time is known then: IAM is asked again. If it does not
# answer, the token serves on, as the service refuses it if it is too old.
_STEP = 5.0
_STEP_PATIENCE = 10.0  # seconds that each request waits for IAM then, until one has waited in vain
_CHECKED_AGAIN = 60.0  # seconds after which the connection's guard is asked again


@dataclass(frozen=True, slots=True)
class _Token:
    """A token and its times."""

    value: str = field(repr=False)
    renew_at: float
    usable_until: float
    expires: float

    @classmethod
    def of(cls, value: str, born: float, life: float) -> _Token:
        margin = max(_MARGIN * life, min(_SHORTEST_MARGIN, 0.1 * life))
        renew = born + life * (1 - _RENEW) if life >= _LONG_LIFE else math.inf
        return cls(value, renew, born + life - margin, born + life)


class TokenSource:
    """Source of valid bearer tokens. Lives on the network loop.

    Args:
        connection: The key to exchange, and IAM's address.
        http: The client to exchange it with.
        patience: How long to retry during an outage.
        clock: Monotonic seconds.
        wall: Seconds since 1970, as this machine's clock is set.
    """

    def __init__(
        self,
        connection: Connection,
        http: httpx.AsyncClient,
        *,
        patience: RetryDeadlines | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._connection = connection
        self._http = http
        self._patience = patience or RetryDeadlines()
        self._clock, self._wall = clock, wall
        self._token: _Token | None = None
        self._answered = False
        self._renewal = SingleFlight[_Token]()
        self._checked = -math.inf  # when the guard last let the key pass
        self._issued: tuple[float, float] | None = None  # by IAM's wall clock, and by ours
        self._apart = 0.0  # our wall clock less our monotonic one when the last token came
        self._waited_at = math.inf  # the same, when IAM was last waited for because it had changed

    async def get(self) -> str:
        """A token that is valid now. Each request needs one, so this is where the connection's guard is asked.

        Raises:
            AuthenticationError: IAM does not know the key.
            ServiceUnavailable: IAM did not answer in time.
            QuantumRuntimeError: The guard does not let the key pass.
        """
        guard = self._connection.guard
        if guard is not None and self._clock() >= self._checked + _CHECKED_AGAIN:
            await guard(self._connection)
            self._checked = self._clock()
        now = self._clock()
        apart = self._wall() - now
        token = self._token
        if token is None or now >= token.usable_until:
            token = await self._renewal.join(self._renew)
        elif abs(apart - self._apart) > _STEP:
            renewal = self._renewal.start(self._renew)
            if abs(apart - self._waited_at) > _STEP:
                await asyncio.wait([renewal], timeout=_STEP_PATIENCE)
                self._waited_at = apart
            token = self._token or await self._renewal.join(self._renew)
        elif now >= token.renew_at:
            self._renewal.start(self._renew)  # its failure is ignored; the next caller without a token tries again
        register_secret(token.value, passing=True)  # again: thousands of signed addresses may have come meanwhile
        return token.value

    def discard(self, value: str) -> None:
        """Drop a token the service refused, unless a newer one took its place already."""
        if self._token is not None and self._token.value == value:
            self._token = None

    @property
    def seconds_left(self) -> float | None:
        """Life left in the present token, None without one."""
        token = self._token
        return None if token is None else max(0.0, token.expires - self._clock())

    @property
    def wall_clock(self) -> float:
        """Seconds since 1970 by IAM's clock, whatever ours was set to; by ours before IAM's first token."""
        if self._issued is None:
            return self._wall()
        issued, at = self._issued
        return issued + self._clock() - at

    @property
    def clock_skew(self) -> float | None:
        """Seconds by which IAM's wall clock is ahead of ours as it is set now; None before its first token."""
        return None if self._issued is None else self.wall_clock - self._wall()

    async def _renew(self) -> _Token:
        token = await repeat(self._ask, phase="token", patience=self._patience, what="token exchange")
        self._token = token
        return token

    async def _ask(self) -> _Token:
        found = await self._answer()
        if isinstance(found, QuantumRuntimeError):
            raise found
        return found

    async def _answer(self) -> _Token | QuantumRuntimeError:
        """Return the token or the error; raised here, the error's traceback would show this frame's key and answer."""
        born = self._clock()
        form = urlencode({"grant_type": _GRANT, "apikey": self._connection.api_key})
        try:
            reply = await exchange(
                self._http,
                "POST",
                f"{self._connection.iam_url}/identity/token",
                seconds=self._connection.request_timeout,
                headers={"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"},
                content=[form.encode()],
            )
        except httpx.HTTPError as exc:
            host = urlsplit(self._connection.iam_url).netloc
            return no_answer(exc, "token", host, trusted=self._answered)
        self._answered = True
        try:
            body = accepted(reply, _QUESTION).object()
        except QuantumRuntimeError as error:
            return error.with_traceback(None)
        self._apart = self._wall() - self._clock()
        value, life = str(body["access_token"]), float(body.get("expires_in", 3600))
        expiration = body.get("expiration")
        if isinstance(expiration, int | float) and not isinstance(expiration, bool):
            self._issued = expiration - life, self._clock()  # issued now, by its clock
        register_secret(value, passing=True)
        return _Token.of(value, born, life)
