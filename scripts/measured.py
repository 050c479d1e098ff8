"""Write what `results/` says of each package's methods into the package, where `fewstep show` finds it."""

from __future__ import annotations

from pathlib import Path

from fewstep.bench.measured import write_measured
from fewstep.bench.tables import load

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    for path in write_measured(load(ROOT / "results"), sorted(ROOT.glob("packages/*/src/*"))):
        print(path.relative_to(ROOT))
