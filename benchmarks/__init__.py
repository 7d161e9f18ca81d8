"""Measure this package beside its peers: `make bench` writes docs/benchmarks.md.

`plan` says what is measured, `run` starts each measurement in a process of its own against a sandbox in another one,
`rows/` holds the measurements, `peers/` how each peer does what is measured, `render` and `chart` write the page.
Measuring processes run in two environments, so `lab`, `child`, `hurry`, `rows/` and `peers/` need only the standard
library, psutil and the peer itself.
"""
