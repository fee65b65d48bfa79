"""What only a GPU can show, in nine minutes on one: `atr gpu`, or `make gpu`.

Weights are drawn at random and sounds made up, so nothing is fetched. Each measurement has a process of its own, as
those of `atr bench`, which ends when the time of its part is up. Everything is written anew after every row, so a run
that is cut short counts as far as it came; what fails says why, and the rest goes on.
"""

from atr.bench.gpu.measure import failures, run

__all__ = ["failures", "run"]
