"""Suite `training`: whole training steps, beside each other and beside a peer's.

The zoo's rankers on one synthetic workload, each with its own `Config()`, the paper's structure,
and our DIN and DIEN beside those of DeepCTR-Torch: the same sizes and the same batches, a row of
the peer's per labelled candidate; what differs is in `deepctr.py`. The peer is timed from ready
tensors on, ours from the event log on. Longer histories come in smaller batches, so that a step has
as many behaviours: their times compare what a behaviour costs. Where PyTorch or the peer is not
installed (extra `parity`), its cases are left out and the suite says so. Every measurement is a
process of its own, and methods alternate.
"""

import dataclasses
import importlib.util
import statistics

from ...train.settings import Settings
from ...train.step import initial_state, offer_devices
from ...zoo import MODELS
from ..cases import choose
from ..process import in_process
from ..results import Row
from ..workload import batches, step_times, synthetic

METRICS = ["ms per step", "examples/s", "time against the first", "times the peer's speed"]
REPEATS = 3
STEPS = 20
_PEERS = ("torch", "deepctr_torch")


@dataclasses.dataclass(frozen=True)
class Case:
    """Methods on one workload; they are compared with the first.

    Attributes:
      name: of the case.
      methods: models of the zoo, "MODEL at HISTORY" for another length, or "deepctr-torch MODEL";
        "..., relu" is the peer with ReLU in its attention, which is not its default; "... on 2
        devices" is ours with replicas on the cores (`--devices 2`).
      history: events of every request.
      candidates: labelled, of every request.
      options: of the models of the zoo; their own defaults otherwise.
      batch_size: labelled candidates per step.
      items: rows of their table; all are named, equally often.
    """

    name: str
    methods: tuple[str, ...]
    history: int
    candidates: int
    options: tuple[tuple[str, object], ...] = ()
    batch_size: int = 512
    items: int = 100_000


# The sizes of the peer's defaults; its activations are ReLU, ours PReLU.
_AS_DEEPCTR = (("attention_units", (64, 16)), ("tower_units", (256, 128)))
_ZOO = ("din", "mlp", "dien", "mimn")
_DIN = ("deepctr-torch din", "deepctr-torch din, relu", "din", "din on 2 devices")
CASES = (
    Case("DIN, 100k items", _DIN, 100, 1, batch_size=1024),
    Case("DIN, 1M items", _DIN, 100, 1, batch_size=1024, items=1_000_000),
    Case("DIN, 10 candidates", _DIN, 100, 10, batch_size=1020),
    Case("history 100, one candidate", _ZOO, 100, 1),
    Case("history 100, four candidates", _ZOO, 100, 4),
    Case("what a behaviour costs", ("din at 100", "din at 1000", "din at 10000"), 100, 1),
    Case("DIEN, history 50", ("deepctr-torch dien", "dien"), 50, 1, _AS_DEEPCTR),
    Case(
        "DIEN without auxiliary loss, history 50",
        ("deepctr-torch dien", "dien"),
        50,
        1,
        (*_AS_DEEPCTR, ("auxiliary_weight", 0.0)),
    ),
)


def run(only: list[str] | None = None) -> list[Row]:
    """Rows of the cases of these names; of all that can run here by default."""
    rows = []
    for case in choose(CASES, only):
        missing = [peer for peer in _PEERS if importlib.util.find_spec(peer) is None]
        if missing and any(_peer(method) for method in case.methods):
            print(f"{case.name}: left out, needs {' and '.join(missing)} (extra `parity`)")
            continue
        rows += _compare(case)
    return rows


def _compare(case: Case) -> list[Row]:
    found: dict[str, list[float]] = {method: [] for method in case.methods}
    for _ in range(REPEATS):
        for method, times in found.items():
            times.append(in_process(measure, case.name, method))
    rows = []
    for method, times in found.items():
        against = [mine / first for mine, first in zip(times, found[case.methods[0]], strict=True)]
        speed = [case.batch_size / seconds for seconds in times]
        rows += [
            Row.of(case.name, method, "ms per step", [1e3 * seconds for seconds in times], "ms"),
            Row.of(case.name, method, "examples/s", speed, "1/s"),
            Row.of(case.name, method, "time against the first", against),
        ]
        if _peer(case.methods[0]) and not _peer(method):
            times_faster = [1 / ratio for ratio in against]
            rows.append(Row.of(case.name, method, "times the peer's speed", times_faster))
    return rows


def measure(name: str, method: str) -> float:
    """Median seconds of a step of a case, in this process."""
    case = next(case for case in CASES if case.name == name)
    peer, _, activation = _peer(method).partition(", ")
    ours, _, count = method.removesuffix(" devices").partition(" on ")
    devices = int(count or 1)
    offer_devices(devices)
    model, _, length = (peer or ours).partition(" at ")
    history = int(length or case.history)
    data = synthetic(case.items, history, case.candidates, case.items)
    module = MODELS[model]
    config = module.Config(schema=data.schema, **dict(case.options))
    settings = Settings(batch_size=case.batch_size * case.history // history, history=history)
    if peer:
        from ..peers import deepctr  # only where it is installed

        ready = batches(module, config, settings, data)
        return statistics.median(deepctr.step_times(model, config, ready, STEPS, activation))
    state = initial_state(module, config, settings, {})
    return statistics.median(step_times(module, config, settings, data, state, STEPS, devices))


def _peer(method: str) -> str:
    """Name of the peer's model; empty for one of the zoo."""
    return method.removeprefix("deepctr-torch ") if method.startswith("deepctr-torch ") else ""
