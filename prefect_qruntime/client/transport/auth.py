"""IAM tokens: one exchange for all callers, renewed early, never written anywhere.

Facts (IBM Cloud docs, IAM identity API): a token lives at most an hour, there is no refresh grant,
`expires_in` is in seconds. We count from our own monotonic clock, so a wrong wall clock does no harm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from prefect_qruntime.client.answers import Question
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.transport.replies import Reply, accepted, no_answer
from prefect_qruntime.client.transport.retrying import RetryDeadlines, repeat
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


@dataclass(slots=True)
class _Token:
    value: str = field(repr=False)
    born: float
    life: float

    def usable_at(self, now: float) -> bool:
        margin = max(_MARGIN * self.life, min(_SHORTEST_MARGIN, 0.1 * self.life))
        return now < self.born + self.life - margin

    def wants_renewal_at(self, now: float) -> bool:
        return self.life >= _LONG_LIFE and now >= self.born + self.life * (1 - _RENEW)


class TokenSource:
    """Hands out a valid bearer token. Lives on the network loop.

    Args:
        connection: Whose key to exchange, and where.
        http: The client to exchange it with.
        patience: How long to repeat through an outage.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        connection: Connection,
        http: httpx.AsyncClient,
        *,
        patience: RetryDeadlines | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._http = http
        self._patience = patience or RetryDeadlines()
        self._clock = clock
        self._token: _Token | None = None
        self._exchange: asyncio.Task[_Token] | None = None
        self.clock_skew: float | None = None
        """Seconds by which IAM's wall clock is ahead of ours, None until it said."""

    async def get(self) -> str:
        """A token that is valid now.

        Raises:
            AuthenticationError: IAM does not know the key.
            ServiceUnavailable: IAM did not answer in time.
        """
        now = self._clock()
        token = self._token
        if token is not None and token.usable_at(now):
            if token.wants_renewal_at(now):
                self._start()
            return token.value
        # Shielded: one cancelled caller must not take the token from the others.
        return (await asyncio.shield(self._start())).value

    def discard(self, value: str) -> None:
        """Drop a token the service refused, unless a newer one took its place already."""
        if self._token is not None and self._token.value == value:
            self._token = None

    @property
    def seconds_left(self) -> float | None:
        """Life left in the present token, None without one."""
        token = self._token
        return None if token is None else max(0.0, token.born + token.life - self._clock())

    def _start(self) -> asyncio.Task[_Token]:
        if self._exchange is None or self._exchange.done():
            self._exchange = asyncio.create_task(self._renew())
            # A background renewal may fail unseen; the next caller without a token tries again.
            self._exchange.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._exchange

    async def _renew(self) -> _Token:
        token = await repeat(self._ask, phase="token", patience=self._patience, what="token exchange")
        self._token = token
        return token

    async def _ask(self) -> _Token:
        born = self._clock()
        try:
            answer = await self._http.post(
                f"{self._connection.iam_url}/identity/token",
                data={"grant_type": _GRANT, "apikey": self._connection.api_key},
                headers={"Accept": "application/json"},
            )
        except httpx.HTTPError as exc:
            failure = no_answer(exc, "token", httpx.URL(self._connection.iam_url).netloc.decode())
        else:
            return self._read(Reply.of(answer), born)
        raise failure  # out here, as httpx's exception holds the request with the key

    def _read(self, reply: Reply, born: float) -> _Token:
        body = accepted(reply, _QUESTION).object()
        value, life = str(body["access_token"]), float(body.get("expires_in", 3600))
        expiration = body.get("expiration")
        if isinstance(expiration, int | float) and not isinstance(expiration, bool):
            self.clock_skew = expiration - life - time.time()  # issued now, by its clock
        register_secret(value)
        return _Token(value, born, life)
