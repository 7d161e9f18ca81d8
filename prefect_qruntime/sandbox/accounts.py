"""Authenticate callers and keep their accounts: API keys, IAM tokens, instances, create limit and usage."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import re
import secrets
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

import orjson

from prefect_qruntime.sandbox.api_errors import ApiError, invalid
from prefect_qruntime.sandbox.clock import Clock, iso
from prefect_qruntime.sandbox.settings import Settings

GRANT = "urn:ibm:params:oauth:grant-type:apikey"
# Values of parameters with names of secrets, and texts in the form of the sandbox's keys and tokens.
_NAMED = re.compile(r"((?:^|[?&;])(?:[\w%-]*(?:key|token|secret|password|authorization)[\w%-]*)=)[^&;]*", re.IGNORECASE)
_SHAPED = re.compile(r"sandbox-[\w-]{20,}|eyJ[\w-]+\.[\w-]+\.[\w-]+")
_PERIOD_SECONDS = 28 * 86400.0


@dataclass(slots=True)
class User:
    """One API key and the instances it may use."""

    id: str
    api_key: str
    crns: tuple[str, ...]
    creates: deque[float] = field(default_factory=deque)


@dataclass(slots=True)
class Instance:
    """One service instance (CRN) with its usage in QPU seconds."""

    crn: str
    guid: str
    admin_id: str
    limit: float | None
    consumed: float = 0.0
    consumed_units: float = 0.0

    @property
    def limit_reached(self) -> bool:
        """Whether the usage limit is reached."""
        return self.limit is not None and self.consumed >= self.limit


class Accounts:
    """Keep keys, tokens and instances. Two users share the first instance; a third has one of its own."""

    def __init__(self, clock: Clock, settings: Settings, api_key: str | None = None, crn: str | None = None) -> None:
        self._clock = clock
        self._settings = settings
        self._fixed_key = api_key
        first, second = crn or new_crn(), new_crn()
        self.crns = (first, second)
        self._secret = secrets.token_bytes(16)
        self.users: dict[str, User] = {}
        self.instances: dict[str, Instance] = {}
        self.pairs: list[tuple[str, str]] = []
        self.iam_calls = 0
        self._tokens: dict[str, tuple[User, float]] = {}
        self._period_start = 0.0
        self.reset(settings)

    def reset(self, settings: Settings) -> None:
        """Start over with new API keys (unless given) and empty ledgers; the CRNs stay."""
        self._settings = settings
        self._tokens.clear()
        self.iam_calls = 0
        self.users.clear()
        self.instances.clear()
        self.pairs.clear()
        first, second = self.crns
        self._period_start = self._clock.now()
        for number, crn in enumerate((first, first, second), start=1):
            key = self._fixed_key if number == 1 and self._fixed_key else f"sandbox-{secrets.token_urlsafe(24)}"
            user = User(f"IBMid-sandbox{number}", key, (crn,))
            self.users[key] = user
            self.pairs.append((key, crn))
            if crn not in self.instances:
                guid = crn.split(":")[7]
                self.instances[crn] = Instance(crn, guid, user.id, settings.usage_limit_seconds)

    def use(self, settings: Settings) -> None:
        """Take changed options into account."""
        if settings.usage_limit_seconds != self._settings.usage_limit_seconds:
            for instance in self.instances.values():
                instance.limit = settings.usage_limit_seconds
        self._settings = settings

    # --- tokens

    def issue_token(self, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        """Answer `POST /identity/token`: HTTP status and body.

        The times in the answer are real seconds, because they are for the caller's clock; the token itself lives
        `token_lifetime` service seconds.
        """
        self.iam_calls += 1
        request_id = secrets.token_hex(16)
        if form.get("grant_type", [""])[-1] != GRANT:
            return 400, _iam_error("BXNIM0137E", "The grant_type is missing or not supported.", request_id)
        user = self.users.get(form.get("apikey", [""])[-1])
        if user is None:
            return 400, _iam_error("BXNIM0415E", "Provided API key could not be found.", request_id)
        lifetime = self._settings.token_lifetime
        seconds = max(1, math.floor(lifetime / self._clock.scale))
        issued = int(time.time())
        token = self._sign({"iam_id": user.id, "iat": issued, "exp": issued + seconds, "jti": request_id})
        self._tokens[token] = (user, self._clock.now() + lifetime)
        return 200, {
            "access_token": token,
            "refresh_token": "not_supported",
            "token_type": "Bearer",
            "expires_in": seconds,
            "expiration": issued + seconds,
            "scope": "ibm_openid",
        }

    def revoke_tokens(self) -> None:
        """Revoke every issued token."""
        self._tokens.clear()

    def replace_key(self) -> None:
        """Give the first user another API key; the old one and every issued token are refused."""
        (old, crn), *others = self.pairs
        user = self.users.pop(old)
        user.api_key = f"sandbox-{secrets.token_urlsafe(24)}"
        self.users[user.api_key] = user
        self.pairs[:] = [(user.api_key, crn), *others]
        self.revoke_tokens()

    def _sign(self, claims: dict[str, Any]) -> str:
        # Clients read `iat` and `exp` out of the token, so it has the form of a JWT.
        parts = [_b64(orjson.dumps({"alg": "HS256", "typ": "JWT"})), _b64(orjson.dumps(claims))]
        digest = hmac.new(self._secret, ".".join(parts).encode(), hashlib.sha256).digest()
        return ".".join([*parts, _b64(digest)])

    def masked(self, text: str) -> str:
        """Return a path or query without keys and tokens, whether escaped or not, known here or not."""
        shown = _NAMED.sub(r"\1***", text)
        plain = unquote_plus(shown)
        hidden = _SHAPED.sub("***", plain)
        for key in self.users:
            hidden = hidden.replace(key, "***")
        return shown if hidden == plain else hidden

    # --- callers

    def authenticate(self, headers: dict[bytes, bytes]) -> tuple[User, Instance]:
        """Return the calling user and the instance.

        Raises:
            ApiError: 401 without a valid token or key, 400 without a CRN, 403 for an instance of another user,
                404 for one that does not exist.
        """
        user = self._user(headers.get(b"authorization", b"").decode("latin-1"))
        crn = headers.get(b"service-crn", b"").decode("latin-1")
        if not crn:
            raise invalid("The header Service-CRN is missing.", "Send the CRN of your instance.")
        instance = self.instances.get(crn)
        if instance is None:
            raise ApiError(404, "not_found", "Instance not found.", "Check the Service-CRN header.")
        if crn not in user.crns:
            raise ApiError(403, 1200, "You have no access to this instance.", "Use an instance of your own.")
        return user, instance

    def _user(self, authorization: str) -> User:
        scheme, _, credential = authorization.partition(" ")
        scheme = scheme.lower()
        if scheme == "bearer":
            known = self._tokens.get(credential)
            if known is not None and known[1] > self._clock.now():
                return known[0]
            raise ApiError(401, 1201, "The token is not valid or has expired.", "Get a new IAM token.")
        if scheme == "apikey" and credential in self.users:
            return self.users[credential]
        raise ApiError(401, 1200, "You are not authorized.", "Send a valid Authorization header.")

    def count_create(self, user: User) -> None:
        """Count one job creation against the caller's limit per minute.

        Raises:
            ApiError: 429, code 1202.
        """
        limit = self._settings.create_limit
        if limit is None:
            return
        now = self._clock.now()
        while user.creates and user.creates[0] <= now - 60.0:
            user.creates.popleft()
        if len(user.creates) >= limit:
            wait = (user.creates[0] + 60.0 - now if user.creates else 60.0) / self._clock.scale
            headers = {"Retry-After": str(max(1, math.ceil(wait)))} if self._settings.retry_after else {}
            raise ApiError(
                429, 1202, f"Too many requests. The limit is {limit} per minute.", "Wait and try again.", headers
            )
        user.creates.append(now)

    # --- usage

    def usage_view(self, instance: Instance) -> dict[str, Any]:
        """Return the body of `GET /instances/usage`."""
        view: dict[str, Any] = {
            "instance_id": instance.crn,
            "plan_id": self.plan_id,
            "usage_period": {
                "start_time": iso(self._period_start),
                "end_time": iso(self._period_start + _PERIOD_SECONDS),
            },
            "usage_consumed_seconds": _plain(round(instance.consumed, 6)),
            "usage_limit_reached": instance.limit_reached,
        }
        if instance.limit is not None:
            view["usage_limit_seconds"] = view["usage_allocation_seconds"] = _plain(instance.limit)
        if rate := self._settings.resource_unit_rate:
            view["usage_consumed_ru"] = round(instance.consumed_units, 6)
            if instance.limit is not None:
                view["instance_limit_ru"] = view["usage_allocation_ru"] = round(instance.limit * rate, 6)
        return view

    @property
    def plan_id(self) -> str:
        """The plan: one with or without dedicated sessions."""
        return "sandbox-premium" if self._settings.allow_dedicated else "sandbox-open"


def _plain(seconds: float) -> float:
    """Return a number without a fraction as an integer, as JSON of the service has it."""
    return int(seconds) if float(seconds).is_integer() else seconds


def new_crn(region: str = "us-east") -> str:
    """Return a new random CRN."""
    return f"crn:v1:bluemix:public:quantum-computing:{region}:a/{secrets.token_hex(16)}:{uuid.uuid4()}::"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _iam_error(code: str, message: str, request_id: str) -> dict[str, Any]:
    context = {"requestId": request_id, "requestType": "incoming.Identity_Token", "url": "/identity/token"}
    return {"errorCode": code, "errorMessage": message, "context": context}
