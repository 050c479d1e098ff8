"""Fit the ceilings of ``fewstep plan --device cpu`` to the unchanged models of the committed rows.

    python benchmarks/calibrate_plan.py results

Speed-ups of methods are not looked at: they are what the plan is then compared with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fewstep.bench.rows import Row, read
from fewstep.plan.calibrate import Observation, fit
from fewstep.plan.check import Pair, pairs
from fewstep.plan.machines import CPU
from fewstep.plan.stored import to_json


def observations(found: list[Pair]) -> dict[str, list[Observation]]:
    """One for each row of an unchanged model, by dtype and threads."""
    seen: dict[str, tuple[Row, Observation]] = {}
    for pair in found:
        if pair.dense is None or pair.row.run.hardware != "cpu":
            continue
        run, seconds = pair.dense.run, pair.dense.value * pair.task.requests
        key = f"{run.id} {pair.dense.task} {pair.dense.metric} {sorted(map(str, pair.dense.params.items()))}"
        seen[key] = pair.dense, Observation(tuple(pair.before), seconds)
    groups: dict[str, list[Observation]] = {}
    for row, one in seen.values():
        groups.setdefault(f"{row.run.dtype}-{row.run.threads}", []).append(one)
    return groups


def main(results: Path) -> None:
    found, _ = pairs([row for row in read(results) if row.task != "plan"])
    machines = {
        key: to_json(fit(some, "cpu", f"fitted to {len(some)} rows of unchanged models on an AMD EPYC (Zen 4)"))
        for key, some in sorted(observations(found).items())
    }
    CPU.write_text(json.dumps(machines, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(machines, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
