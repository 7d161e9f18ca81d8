"""Cloud Resource Names: checked before they reach a header, and the region they hold."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prefect_qruntime.errors import InvalidInput

__all__ = ["Crn", "parse_crn"]

# crn:v1:<cname>:<ctype>:<service>:<region>:a/<account>:<instance guid>::
# (IBM Cloud docs, "Cloud Resource Names")
_CRN = re.compile(
    r"crn:v1:(?P<cname>[a-z][a-z0-9-]{0,31}):(?P<ctype>public|dedicated|local):quantum-computing:"
    r"(?P<region>[a-z]{2}(?:-[a-z0-9]{1,16}){1,3}):a/(?P<account>[0-9A-Za-z]{1,64}):(?P<instance>[0-9A-Za-z-]{1,64})::"
)


@dataclass(frozen=True, slots=True)
class Crn:
    """A parsed CRN of a Quantum Compute Service instance."""

    text: str
    cname: str
    region: str
    account: str
    instance: str

    def __str__(self) -> str:
        """The CRN as it goes into the `Service-CRN` header."""
        return self.text


def parse_crn(text: str, *, field: str = "crn") -> Crn:
    """Check a CRN and take it apart.

    Args:
        text: The CRN; surrounding blanks are dropped.
        field: How an error names it.

    Returns:
        The parsed CRN.

    Raises:
        InvalidInput: It is not the CRN of a quantum-computing instance. A line break or any other
            character that could leave the header is refused as well.

    Example:
        ```python
        from prefect_qruntime.crn import parse_crn

        crn = parse_crn("crn:v1:bluemix:public:quantum-computing:eu-de:a/0123abcd:11aa-22bb::")
        assert crn.region == "eu-de"
        ```
    """
    stripped = text.strip(" ") if isinstance(text, str) else ""
    match = _CRN.fullmatch(stripped)
    if match is None:
        raise InvalidInput(
            "not the CRN of a quantum-computing instance.",
            field=field,
            solution="It looks like crn:v1:bluemix:public:quantum-computing:<region>:a/<account>:<instance>:: "
            "and stands on the instance's page of the IBM Quantum Platform.",
        )
    return Crn(stripped, match["cname"], match["region"], match["account"], match["instance"])
