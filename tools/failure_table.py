"""Write the table of answers in `docs/failures.md` from the rules that decide.

Run `python tools/failure_table.py`; with `--check` it only checks whether the page is up to date (exit code 1 if not).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

from prefect_qruntime.client.failures import RULES, Phase, Rule

PAGE = Path(__file__).resolve().parent.parent / "docs" / "failures.md"
BEGIN, END = "<!-- answers: written by tools/failure_table.py -->", "<!-- end of answers -->"
OWNERS = {"service": "the service", "other": "anything in between", None: "anyone"}
ADVICE = {
    "never": "final",
    "again": "repeated",
    "pace": "repeated; after 12 s on creates",
    "search": "looked for before anything is sent again",
}


def phases(rule: Rule) -> str:
    """The phases of a rule in words."""
    names = [phase for phase in get_args(Phase) if phase in rule.phases]
    missing = [phase for phase in get_args(Phase) if phase not in rule.phases]
    if not missing:
        return "any"
    return ", ".join(names) if len(names) <= 3 else f"any but {', '.join(missing)}"


def table() -> str:
    """The rules as a Markdown table, in the order in which they are tried."""
    lines = ["| phase | who answers | answer | error | then |", "|---|---|---|---|---|"]
    for rule in RULES:
        cells = (phases(rule), OWNERS[rule.owner], rule.cause, f"`{rule.error.__name__}`", ADVICE[rule.advice])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its table written anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> int:
    """Write or check the page."""
    old = PAGE.read_text()
    new = page(old)
    if "--check" in sys.argv[1:]:
        if new != old:
            print(f"{PAGE} is out of date: run python tools/failure_table.py")
        return int(new != old)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
