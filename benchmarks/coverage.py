"""Do the intervals over many worlds cover the truth? Made-up results of known variances and effect.

    python benchmarks/coverage.py [--draws 1000] [--output results/benchmarks]

Every draw makes differences 1 + world + type + world x type + seed, all normal, and asks whether
the 95 % interval of `fusinglib.evaluation.worlds` in each scope holds what it speaks of: 1 plus the
mean of these very tasks, or 1.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from fusinglib.evaluation.worlds import SCOPES, difference

SIZES = [(10, 13), (10, 6), (10, 5), (5, 13), (3, 6)]
DEVIATIONS = {  # of world, task, world x task, and of one seed, in points
    "all alike": (1, 1, 1, 1),
    "tasks vary most": (0.5, 2, 1, 2),
    "worlds vary most": (2, 0.2, 1, 2),
    "as in the miniature world": (0.4, 3, 1, 4),
    "nothing but rest": (0, 0, 1, 4),
}


def covered(worlds: int, types: int, deviations: tuple, draws: int) -> list[float]:
    """How often each scope's interval holds the truth, in percent."""
    rng, hits = np.random.default_rng(0), np.zeros(len(SCOPES))
    for _ in range(draws):
        world, type_, rest, seed = (rng.normal(0, d, s) for d, s in zip(
            deviations, [(worlds, 1, 1, 1), (types,), (worlds, 1, 1, types),
                         (worlds, 1, 3, types)], strict=True))  # fmt: skip
        made = 1 + world + type_ + rest + seed
        for number, (scope, truth) in enumerate(zip(SCOPES, (1 + type_.mean(), 1), strict=True)):
            found = difference(made, np.zeros_like(made), scope)
            hits[number] += found.low <= truth <= found.high
    return list(100 * hits / draws)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    rows = [
        (worlds, types, name, *covered(worlds, types, deviations, options.draws))
        for worlds, types in SIZES
        for name, deviations in DEVIATIONS.items()
    ]
    table = pd.DataFrame(rows, columns=["worlds", "tasks", "varies", *SCOPES])
    options.output.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.output / "coverage.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
