"""The tasks on a local Ray cluster; run by `make ray-test` in an environment of its own."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("prefect_ray") else ["test_*.py"]
