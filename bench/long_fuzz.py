"""Fuzz for as long as you like: damaged recipes, data files, checkpoints and run folders, by a seed.

    python bench/long_fuzz.py --seconds 3600 --seed 7      many cases; each fault is told and its files are kept
    python bench/long_fuzz.py --case tables:3000123        one case again, with the whole traceback

The last line is JSON: {"cases": n, "faults": n, "by_kind": {...}}. The exit status is 1 when there was a fault.
`tests/fuzz` runs the first 2,000 cases of a fixed seed; generators and judges are those of that folder.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
os.environ |= {"HF_HUB_OFFLINE": "1", "FINESMITH_TRACEBACK": "1"}
# In turn, by what a second of each finds: the cases of a run folder cost a hundred times those of a recipe.
TURNS = {"recipes": 200, "tables": 100, "language": 60, "checkpoints": 40, "runs": 15}
# Seconds after the end at which a library that never returns to Python is stopped, and says where it hangs.
LONGEST_TURN = 120.0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=600.0)
    options.add_argument("--seed", type=int, default=0, help="cases begin at this seed times ten million")
    options.add_argument("--kinds", nargs="*", choices=list(TURNS), default=list(TURNS))
    options.add_argument("--case", metavar="KIND:SEED", help="run this one case")
    chosen = options.parse_args()
    warnings.simplefilter("error", RuntimeWarning)
    with tempfile.TemporaryDirectory(prefix="finesmith-long-fuzz-") as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "user-cache")
        here = Path(name) / "here"
        here.mkdir()
        os.chdir(here)
        return one(chosen.case, Path(name)) if chosen.case else many(chosen, Path(name))


def one(case: str, folder: Path) -> int:
    from fuzz.cases import maker

    kind, _, seed = case.partition(":")
    place = Path(tempfile.mkdtemp(prefix=f"finesmith-fuzz-{kind}-{seed}-"))
    print(f"the files are in {place}")
    print(maker(kind, folder)(random.Random(f"{kind} {seed}"), place))
    return 0


def many(chosen: argparse.Namespace, folder: Path) -> int:
    from fuzz.cases import Tally, maker, run_cases

    made = {kind: maker(kind, folder / kind) for kind in chosen.kinds}
    began = time.monotonic()
    tallies = {kind: Tally(kind) for kind in chosen.kinds}
    faulthandler.dump_traceback_later(chosen.seconds + LONGEST_TURN, exit=True)
    while time.monotonic() - began < chosen.seconds:
        for kind, tally in tallies.items():
            known, first = len(tally.faults), chosen.seed * 10**7 + tally.cases
            for seed in range(first, first + TURNS[kind]):
                if time.monotonic() - began < chosen.seconds:
                    run_cases(kind, [seed], made[kind], folder / "cases", tally)
            for fault in tally.faults[known:]:
                print(fault, end="\n\n", flush=True)
    faulthandler.cancel_dump_traceback_later()
    for tally in tallies.values():
        print(tally)
    by_kind = {
        kind: {"cases": tally.cases, "faults": len(tally.faults), "ended": dict(tally.ended)}
        for kind, tally in tallies.items()
    }
    faults = sum(len(tally.faults) for tally in tallies.values())
    print(json.dumps({"cases": sum(tally.cases for tally in tallies.values()), "faults": faults, "by_kind": by_kind}))
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
