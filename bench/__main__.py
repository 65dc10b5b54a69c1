"""`python -m recjax.bench SUITE [--out DIR]`."""

import argparse

from . import suites

parser = argparse.ArgumentParser(prog="python -m recjax.bench")
parser.add_argument("suite", choices=sorted(suites.SUITES))
parser.add_argument("--out", default="runs/bench")
options = parser.parse_args()
suites.run(options.suite, options.out)
