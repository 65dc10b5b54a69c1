"""Would the tests notice? One-line faults, each of which must turn a gate red: `make mutants`.

Each fault is made in a copy of the tree, and the tests that should notice it are run there. The
result is written to `tests/mutants.json`. By hand, not in CI: it takes a quarter of an hour.

    python tests/mutants.py [NAME ...]
"""

import datetime
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "tests" / "mutants.json"
COPIED = ("kernels", "zoo", "train", "export", "bench", "tests")
# As the gates have them, see the Makefile.
QUICK = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false"
)


class Mutant(NamedTuple):
    """A fault: in `path`, `old` (which stands there once) becomes `new`; `tests` should notice."""

    name: str
    path: str
    old: str
    new: str
    tests: str


MUTANTS = (
    # kernels
    Mutant(
        "attention sees masked events", "kernels/_mask.py",
        "return jnp.where(mask, score, 0)", "return score",
        "tests/kernels/test_target_attention.py",
    ),
    Mutant(
        "a chosen candidate can be chosen again", "kernels/pointer_decode/turn.py",
        "free & ~picked", "free", "tests/kernels/test_pointer_decode.py",
    ),
    Mutant(
        "of equal scores the oldest is found", "kernels/soft_search/reference.py",
        "keys, mask = keys[:, ::-1].astype(jnp.float32), mask[:, None, ::-1]",
        "keys, mask = keys.astype(jnp.float32), mask[:, None]",
        "tests/kernels/test_soft_search.py",
    ),
    Mutant(
        "a recurrence costs one step", "kernels/augru/cases.py",
        "pairs * self.length * of_state", "pairs * of_state",
        "tests/kernels/test_ops.py",
    ),
    # zoo
    Mutant(
        "a mean over one device alone", "zoo/layers/losses.py",
        "total, mass = jax.lax.psum((total, mass), axis_name)", "pass",
        "tests/zoo/test_contract.py -k mlp",
    ),
    Mutant(
        "the loss counts masked candidates", "zoo/layers/losses.py",
        "weight = jnp.where(mask, weight, 0.0)", "weight = weight * 1.0",
        "tests/zoo/test_contract.py -k mlp",
    ),
    Mutant(
        "all devices drop the same values", "zoo/layers/losses.py",
        "key = jax.random.fold_in(key, jax.lax.axis_index(module.axis_name))", "pass",
        "tests/train/test_step.py",
    ),
    Mutant(
        "padding reads its row", "zoo/embeddings.py",
        "(ids == PADDING_ROW)[..., None]", "(ids < PADDING_ROW)[..., None]",
        "tests/zoo/features/test_embeddings.py",
    ),
    Mutant(
        "PReLU keeps negative numbers whole", "zoo/layers/tower.py",
        "alpha[None] * jnp.minimum(rows, 0.0)", "jnp.minimum(rows, 0.0)",
        "tests/zoo/test_din.py",
    ),
    Mutant(
        "Dice's moments count masked entries", "zoo/layers/tower.py",
        "total = _psum(jnp.where(kept, x, 0.0).sum(axes), axis_name)",
        "total = _psum(x.sum(axes), axis_name)",
        "tests/zoo/test_din.py",
    ),
    Mutant(
        "capsules are as long as they come", "zoo/layers/routing.py",
        "/ (1.0 + square)", "/ (1.0 + 0.0 * square)", "tests/zoo/test_mind.py",
    ),
    Mutant(
        "a draw that is the candidate counts", "zoo/layers/retrieval.py",
        'hit = batch["candidate"][name][..., None] == batch["sampled"][name][None, None]',
        'hit = batch["candidate"][name][..., None] != batch["candidate"][name][..., None]',
        "tests/zoo/test_mf.py tests/zoo/test_mind.py tests/zoo/test_retrieval.py",
    ),
    Mutant(
        "re-rankers see padding", "zoo/rerank/listwise.py",
        "return jnp.where(mask[..., None], rows, 0.0)", "return rows",
        "tests/zoo/rerank",
    ),
    Mutant(
        "evaluators see no ids and no pictures", "zoo/rerank/listwise.py",
        "rows = tower_input(embedded, jnp.zeros((*mask.shape, 0)), product=False)",
        "rows = 0.0 * tower_input(embedded, jnp.zeros((*mask.shape, 0)), product=False)",
        "tests/zoo/test_shop_fields.py",
    ),
    Mutant(
        "serial LAST never moves", "zoo/rerank/last/exploration.py",
        "x - step * getattr(way, n)", "x - 0.0 * getattr(way, n)",
        "tests/zoo/rerank/test_last.py",
    ),
    Mutant(
        "serial LAST steps up the loss", "zoo/rerank/last/exploration.py",
        "x - step * getattr(way, n)", "x + step * getattr(way, n)",
        "tests/zoo/rerank/test_last.py",
    ),
    Mutant(
        "disagreement is a reason to choose", "zoo/rerank/last/exploration.py",
        "gain.mean(axis=-1) - pessimism * gain.std(axis=-1)",
        "gain.mean(axis=-1) + pessimism * gain.std(axis=-1)",
        "tests/zoo/rerank/test_last.py",
    ),
    Mutant(
        "empty slots earn something", "zoo/rerank/rewards.py",
        "jnp.where(order[..., None] >= 0, jnp.stack(found, axis=-1), 0.0)",
        "jnp.stack(found, axis=-1)",
        "tests/zoo/rerank/test_rewards.py tests/zoo/rerank/test_last.py",
    ),
    # train
    Mutant(
        "rows that no batch names are pushed", "train/tables/pull_push.py",
        "return jnp.where(touched, rows, outside)", "return jnp.asarray(rows)",
        "tests/train/tables",
    ),
    Mutant(
        "Adam forgets that it starts at zero", "train/tables/optimizers.py",
        "m_hat, v_hat = m / (1.0 - b1**t), v / (1.0 - b2**t)", "m_hat, v_hat = m, v + 0.0 * t",
        "tests/train/tables",
    ),
    Mutant(
        "every step draws the same noise", "train/step.py",
        "key = jax.random.fold_in(jax.random.key(settings.seed, impl=\"rbg\"), state.step)",
        "key = jax.random.key(settings.seed, impl=\"rbg\")",
        "tests/train/test_step.py",
    ),
    Mutant(
        "a history holds its target", "train/data/batches/windows.py",
        "first = log.offsets[requests.user] + requests.cut - kept",
        "first = log.offsets[requests.user] + requests.cut - kept + (kept > 0)",
        "tests/train/data/batches",
    ),
    Mutant(
        "a touched item is a negative", "train/data/draws.py",
        "fine = (item >= 0) & ~self._is_touched(owner[of] * self._size + item)",
        "fine = item >= 0",
        "tests/train/data/batches/test_draws.py",
    ),
    Mutant(
        "a leak at the very second of the request", "train/data/event_log.py",
        "late[open_] = (time > requests.time[open_]) | (same & own)",
        "late[open_] = time > requests.time[open_]",
        "tests/train/data/test_event_log.py tests/train/data/test_protocol.py",
    ),
    Mutant(
        "the last two events are for test", "train/data/protocol.py",
        "part[until_end <= 1] = TEST", "part[until_end <= 2] = TEST",
        "tests/train/data/test_interactions.py tests/train/data/test_protocol.py",
    ),
    Mutant(
        "unknown items are drawn as negatives", "train/data/draws.py",
        "order = order[: int(np.count_nonzero(appeared < NEVER))]", "order = order[:]",
        "tests/train/data/batches/test_draws.py",
    ),
    Mutant(
        "an unknown item is worth a known one's least", "train/unseen.py",
        "weight = np.sqrt(counts.astype(np.float64))", "weight = 1.0 / (1.0 + counts)",
        "tests/train/test_unseen.py",
    ),
    Mutant(
        "milliseconds are seconds", "train/data/declaration/clock.py",
        "return _clock(values, numbers // per, wrong, found, note)",
        "return _clock(values, numbers, wrong, found, note)",
        "tests/train/data/declaration/test_clock.py",
    ),
    Mutant(
        "ties count for the positive", "train/evaluation/bootstrap.py",
        "won = np.sum(up * (down[pairs.below] + down[pairs.up_to])) / 2.0",
        "won = np.sum(up * down[pairs.up_to])",
        "tests/train/evaluation/test_metrics.py",
    ),
    Mutant(
        "calibration turns the order around", "train/evaluation/calibration.py",
        "return Calibration(slopes[0] / scale, intercept - slopes[0] / scale * mean)",
        "return Calibration(-slopes[0] / scale, intercept - slopes[0] / scale * mean)",
        "tests/train/evaluation/test_calibration.py",
    ),
    Mutant(
        "a calibration that does harm is kept", "train/evaluation/calibration.py",
        "if not lost[bent].sum() < np.sum(w * _losses(x, y)):", "if bent is None:",
        "tests/train/evaluation/test_calibration.py",
    ),
    Mutant(
        "what is served knows no prior", "zoo/calibration.py",
        "return self(logit) + self.shift", "return self(logit)",
        "tests/train/evaluation/test_calibration.py",
    ),
    Mutant(
        "chance is warned of", "train/evaluation/miscalibration.py",
        "_ERROR + _NOISES * noise", "_ERROR",
        "tests/train/evaluation/test_miscalibration.py",
    ),
    Mutant(
        "a half-written checkpoint counts", "train/checkpoints.py",
        "aside, final = folder / f\"{step}.partial\", folder / str(step)",
        "aside, final = folder / f\"{step}.partial\", folder / f\"{step + 1}\"",
        "tests/train/test_loop.py",
    ),
    Mutant(
        "a run does not go on where it stopped", "train/loop.py",
        "self._batches.epoch(position.epoch, position.index)",
        "self._batches.epoch(position.epoch, 0)",
        "tests/train/test_loop.py tests/train/test_custom_model.py",
    ),
    # export
    Mutant(
        "damage is not noticed", "export/artifact.py",
        "if checksum(folder / name) != expected:", "if False and expected:",
        "tests/export",
    ),
    Mutant(
        "a longer history is cut in silence", "export/artifact.py",
        'if sizes.get("L", 0) > wanted["L"]:', 'if sizes.get("L", 0) > 10 * wanted["L"]:',
        "tests/export/test_stablehlo.py",
    ),
    Mutant(
        "draws ignore their seeds", "export/artifact.py",
        'batch = {**batch, "seeds": seeds}', 'batch = {**batch, "seeds": 0 * seeds}',
        "tests/export/test_slates.py -k seeds",
    ),
    Mutant(
        "many requests are not split", "export/answers.py",
        "at_once = min(at_once, model.sizes(at_once, width)[0])", "pass",
        "tests/export/test_answers.py -k fixed_sizes",
    ),
    Mutant(
        "what is served has another share of positives", "zoo/calibration.py",
        "return self(logit) + self.shift", "return self(logit)",
        "tests/export/test_answers.py -k metrics",
    ),
    # api
    Mutant(
        "ids of another vocabulary are scored", "train/launch.py",
        "if run.outline(dataset.row_maps) != run.outline(saved.row_maps):", "if False:",
        "tests/test_api.py -k vocabulary",
    ),
    Mutant(
        "a warm start takes rows by their place", "train/warm_start.py",
        "of = np.concatenate([np.arange(RESERVED_ROWS), rows[known]])",
        'of = np.minimum(to, len(old["tables"][name]) - 1)',
        "tests/train/test_warm_start.py",
    ),
    Mutant(
        "a model of one's own opens as the zoo's", "train/launch.py",
        "if module is None or (module is known and not of_zoo):", "if module is None:",
        "tests/train/test_own_models.py",
    ),
)  # fmt: skip


def survives(mutant: Mutant, copy: Path) -> bool:
    """Whether the tests stay green with the fault in the copy."""
    path = copy / mutant.path
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: stands {text.count(mutant.old)} times in {mutant.path}")
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy.parent),  # In front of where this tree is installed.
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
    }
    if not mutant.path.startswith("kernels"):
        environment["XLA_FLAGS"] = QUICK
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", *mutant.tests.split()]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(text)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{mutant.name}: pytest ended with {done.returncode}\n{done.stdout}")
    return done.returncode == 0


def main(names: list[str]) -> int:
    """Runs the mutants of these names, or all; 1 if one survives."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "recjax"
        copy.mkdir()
        for folder in COPIED:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
        for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md"):
            shutil.copy(path, copy)
        for mutant in MUTANTS:
            if names and mutant.name not in names:
                continue
            started = time.monotonic()
            found[mutant.name] = "survived" if survives(mutant, copy) else "died"
            print(
                f"{found[mutant.name]}: {mutant.name} ({time.monotonic() - started:.0f} s)",
                flush=True,
            )
    known = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    today = datetime.date.today().isoformat()
    known |= {name: {"result": result, "date": today} for name, result in found.items()}
    known = {mutant.name: known[mutant.name] for mutant in MUTANTS if mutant.name in known}
    RESULT.write_text(json.dumps(known, indent=2) + "\n")
    return int("survived" in found.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
