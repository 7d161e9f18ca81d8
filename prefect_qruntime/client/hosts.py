"""The hosts of each dialect of the service, by region.

Sources: IBM's OpenAPI document 0.45.3; the clients 0.1 to 0.51 for the older hosts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["DIALECTS", "HOME_REGION", "HOSTS", "REGIONS", "Dialects", "Hosts", "dialect_that_answers"]

Dialects = Literal["cloud", "legacy"]
DIALECTS: tuple[Dialects, ...] = get_args(Dialects)
REGIONS = ("us-east", "eu-de")
HOME_REGION = "us-east"
"""The region of hosts that name none."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts of one dialect.

    Attributes:
        pattern: Matches a host's name; its group `region` is the region, if the name has one.
        lists_versions: Whether there is `GET /versions`, which distinguishes the dialects.
        corrects: What is wrong in a block that names another dialect's host, beside the dialect.
    """

    pattern: re.Pattern[str]
    lists_versions: bool
    corrects: str
    _url: str
    _home_url: str

    def url(self, region: str) -> str:
        """What `/jobs` is appended to in a region."""
        return self._home_url if region == HOME_REGION else self._url.format(region=region)


HOSTS: Mapping[Dialects, Hosts] = {
    "cloud": Hosts(
        pattern=re.compile(r"(?:private\.)?(?:(?P<region>[a-z]{2}-[a-z0-9-]+)\.)?quantum\.cloud\.ibm\.com"),
        lists_versions=True,
        corrects="base_url",
        _url="https://{region}.quantum.cloud.ibm.com/api/v1",
        _home_url="https://quantum.cloud.ibm.com/api/v1",
    ),
    "legacy": Hosts(
        pattern=re.compile(r"(?P<region>[a-z]{2}-[a-z0-9-]+)\.quantum-computing\.cloud\.ibm\.com"),
        lists_versions=False,
        corrects="api_key, crn and base_url",
        _url="https://{region}.quantum-computing.cloud.ibm.com",
        _home_url="https://us-east.quantum-computing.cloud.ibm.com",
    ),
}


def dialect_that_answers(*, lists_versions: bool) -> Dialects:
    """The dialect of a host, by whether it lists API versions."""
    return next(name for name, hosts in HOSTS.items() if hosts.lists_versions is lists_versions)
