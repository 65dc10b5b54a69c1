"""`python -m recjax.bench SUITE [--out DIR]`, for machines without the command line's needs."""

import argparse
import sys

from . import suites

parser = argparse.ArgumentParser(prog="python -m recjax.bench")
parser.add_argument("suite", choices=sorted(suites.SUITES))
parser.add_argument("--out", default="runs/bench")
parser.add_argument("--only", action="append", metavar="CASE")
parser.add_argument("--seeds", type=int, metavar="N")
options = parser.parse_args()
try:
    suites.run(options.suite, options.out, only=options.only, seeds=options.seeds)
except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
