"""One measurement in a process of its own: reads what to do from stdin, writes its numbers to a file."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Run the measurement that stdin describes."""
    order = json.load(sys.stdin)
    from benchmarks.hurry import hurry

    hurry(order["scale"])
    from benchmarks.lab import Lab
    from benchmarks.peers import make_peer

    lab = Lab(order["url"], order["api_key"], order["crn"], order["peer"], order["scale"], order["args"])
    module, function = order["row"].split(".")
    numbers = getattr(import_module(f"benchmarks.rows.{module}"), function)(lab, make_peer(order["peer"], lab))
    Path(order["out"]).write_text(json.dumps(numbers))


if __name__ == "__main__":
    main()
