"""A trained run as StableHLO: an artifact that serves without the zoo's code, see `artifact`.

    recjax export runs/din-market-1 --format stablehlo --out artifact
    recjax export runs/generator --evaluator runs/judge --out artifact       # LAST in one program

A ranker's program gives scores; a generator's the slate that it writes greedily; with evaluators
it is LAST (`zoo.rerank.last`): a request goes in, the slate that they pick comes out. The programs
are for CPU, CUDA and TPU.

The numbers of requests, of candidates and of groups are symbolic: one program serves them all. An
evaluator's candidates are the slots of its slate, as many as it was trained with. With `requests`
and `candidates` given, the program has these sizes, which kernels need; smaller batches are padded.
The history has the length that the run was trained with.
"""

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
import shutil
import tempfile
from typing import Any
from urllib.parse import quote

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ..train import launch, run
from ..zoo.batch import Batch, part_of, served
from ..zoo.contract import Generator, Model, Retriever
from ..zoo.features import Schema, example_batch
from ..zoo.rerank import GENERATORS, last
from .artifact import MANIFEST, SIZES, TRITON, ArtifactError, checksum, load, platform
from .describe import readme

PLATFORMS = ("cpu", "cuda", "tpu")
_AGREE = 1e-5


@dataclasses.dataclass(frozen=True)
class _Program:
    """A pure function of (variables, inputs), and the shapes of its inputs."""

    function: Callable[[Any, Any], Any]
    inputs: Any


def export_run(
    folder: Path | str,
    out: Path | str,
    *,
    evaluators: Sequence[Path | str] = (),
    preset: str | None = None,
    worth: tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None,
    requests: int | None = None,
    candidates: int | None = None,
    platforms: Sequence[str] = PLATFORMS,
    model: Model | None = None,
) -> dict[str, Any]:
    """Exports the best variables of a run, and proves that the artifact gives the same answers.

    Args:
      folder: of a run.
      out: folder of the artifact; absent or empty.
      evaluators: of a generator: folders of the runs that judge its slates. Then the artifact is
        LAST.
      preset: of LAST, one of `zoo.rerank.last.PRESETS`; "default" by default.
      worth: how much each task of the evaluators counts, as the generator was trained with; see
        `zoo.rerank.rewards.Evaluators`. A click 1 by default, other tasks nothing.
      requests: fixed number of requests in the program; any by default.
      candidates: the same of candidates.
      model: the module of a model of one's own.
      platforms: of "cpu", "cuda" and "tpu", for which the program is made.

    Returns:
      The manifest, with `largest_difference` to the model itself on a random batch; of slates, the
      share of those that differ.

    Raises:
      RunError: no run, or `out` holds something.
      ArtifactError: the model cannot be exported like this, or the artifact does not give the
        model's answers. Nothing is left in `out`, nor beside it.

    Examples:
      >>> import tempfile
      >>> from recjax.export.artifact import load
      >>> from recjax.export.stablehlo import export_run
      >>> from recjax.train import launch
      >>> run, out = tempfile.mkdtemp(), tempfile.mkdtemp()
      >>> options = {"steps": 2, "tower_units": 8, "history": 5}
      >>> _ = launch.train("mlp", data="market:tiny", out=run, options=options, quiet=True)
      >>> _ = export_run(run, out, platforms=["cpu"])
      >>> artifact = load(out)
      >>> items = [{"item": 3}, {"item": 5}]
      >>> request = {"context": {"time": 100}, "user": {"history": []}, "items": items}
      >>> artifact.score(artifact.encode([request])).shape
      (1, 2)
    """
    folder, out = Path(folder), Path(out)
    run.require_free(out)
    for name, value in (("requests", requests), ("candidates", candidates)):
        if value is not None and value < 1:
            raise ArtifactError(f"{name} must be >= 1, got {value}.")
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ArtifactError(f"platforms must be some of {', '.join(PLATFORMS)}, got {platforms}.")
    if requests and candidates and len(platforms) > 1:
        raise ArtifactError(
            "A program of fixed sizes is for one platform, whose kernels it may hold: name it "
            f"(--platform), got {', '.join(platforms)}."
        )
    trained = launch.load_run(folder, model)
    module, config, saved = trained.module, trained.config, trained.saved
    if module.KIND == "evaluator":
        if candidates not in (None, config.slots):
            raise ArtifactError(
                f"An evaluator's candidates are the {config.slots} slots of its slates, got "
                f"{candidates}."
            )
        candidates = config.slots
    sizes = {"requests": requests, "candidates": candidates, "groups": candidates}
    history = saved.settings.history
    example = _example(config.schema, module.requirements(config), history, sizes)
    if not saved.has_clock:  # The model never saw an age.
        example = {role: x for role, x in example.items() if not role.endswith("_age")}
    if not evaluators and (preset, worth) != (None, None):
        raise ArtifactError("LAST needs evaluators: a preset and a worth are for it alone.")
    if evaluators:
        variables, program = _last(trained, evaluators, preset or "default", worth, example)
    else:
        variables = trained.variables
        program = lambda v, b: module.apply(v, config, b)._asdict()
    programs = {"apply": _Program(program, _shapes(example, sizes))}
    if isinstance(module, Retriever):
        programs |= _retrieval(module, config, example, sizes)

    flat, structure = _flat(variables), jax.tree.structure(variables)
    written = {
        name: _serialised(saved.model, one, flat, structure, platforms)
        for name, one in programs.items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for name, (content, _) in written.items():
            (aside / f"{name}.program").write_bytes(content)
        np.savez(aside / "variables.npz", **flat)
        if (folder / "rows").is_dir():
            shutil.copytree(folder / "rows", aside / "rows")
        expected = jax.jit(programs["apply"].function)(variables, example)
        manifest = {
            "format": "stablehlo",
            "model": saved.model,
            "kind": module.KIND,
            "options": saved.options,
            "calibration": {name: one._asdict() for name, one in trained.calibrations.items()},
            "data": saved.source,
            "schema": config.schema.to_dict(),
            "schema_hash": config.schema.hash,
            "history": history,
            "sizes": sizes,
            "programs": sorted(programs),
            "inputs": {name: sorted(one.inputs) for name, one in programs.items()},
            "tasks": sorted(expected.get("tasks", {}), key=config.schema.tasks.index),
            "outputs": {"apply": sorted(n for n, x in expected.items() if x is not None)},
            "platforms": list(platforms),
            "needs": ["jax_triton"] if any(kernels for _, kernels in written.values()) else [],
            "versions": run.versions(),
            "date": run.now(),
            "files": {
                str(path.relative_to(aside)): checksum(path)
                for path in sorted(aside.rglob("*"))
                if path.is_file()
            },
        }
        if evaluators:
            manifest["last"] = {
                "preset": preset or "default",
                "evaluators": [str(f) for f in evaluators],
                "worth": worth,
            }
        run.write_json(aside / MANIFEST, manifest)
        text = readme(out.name, manifest, config.schema, saved.row_maps)
        (aside / "README.md").write_text(text)
        difference = _difference(aside, example, expected, platforms)
        if difference is not None and not difference <= _AGREE:
            raise ArtifactError(f"The exported {saved.model} differs from it by {difference:.3g}.")
        out = out.resolve()  # It may be a link to an empty folder.
        if out.is_dir():
            out.rmdir()
        aside.chmod(0o755)
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return {"out": str(out), **manifest, "largest_difference": difference}


def _serialised(
    model: str, program: _Program, flat: dict[str, Any], structure: Any, platforms: Sequence[str]
) -> tuple[bytearray, bool]:
    """The program as a function of (flat variables, inputs), and whether it needs Triton."""
    shapes = {name: _shape(x) for name, x in flat.items()}

    def function(flat, inputs):
        whole = jax.tree.unflatten(structure, [flat[name] for name in shapes])
        return program.function(whole, inputs)

    try:
        # JAX promises nothing of programs with kernels over time; the manifest has its version.
        exported = jax.export.export(
            jax.jit(function),
            platforms=tuple(platforms),
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(TRITON)],
        )(shapes, program.inputs)
        return exported.serialize(), TRITON in exported.mlir_module()
    except Exception as error:  # What JAX cannot trace or lower, it says in many ways.
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if isinstance(error, jax.errors.InconclusiveDimensionOperation):
            reason = f"its program depends on a size, so name it (--candidates N). {reason}"
        raise ArtifactError(f"{model} cannot be exported: {reason}") from error


def _difference(
    aside: Path, example: Batch, expected: dict[str, Any], platforms: Sequence[str]
) -> float | None:
    """Distance of the written artifact from the model; None where this machine cannot run it."""
    if platform() not in platforms:
        return None
    artifact = load(aside)
    if "order" in expected:
        return float(jnp.mean(jnp.any(artifact.slate(example) != expected["order"], axis=1)))
    actual = artifact.score(example)
    largest = max(1.0, float(jnp.abs(expected["logit"]).max()))
    return float(jnp.abs(actual - expected["logit"]).max()) / largest


def _example(schema: Schema, requirements: Any, history: int, sizes: dict[str, Any]) -> Batch:
    batch = example_batch(
        schema,
        batch=sizes["requests"] or 3,
        history=history,
        candidates=sizes["candidates"] or 12,
        retrieved=requirements.retrieved,
        preferences=requirements.preferences,
    )
    return served(batch)


def _last(
    trained: launch.Trained,
    folders: Sequence[Path | str],
    preset: str,
    worth: Any,
    example: Batch,
) -> tuple[Any, Callable[[Any, Any], dict[str, Any]]]:
    """Variables of the generator and of the evaluators, and LAST as a function of them."""
    module, config = trained.module, trained.config
    if not isinstance(module, Generator):
        raise ArtifactError(
            f"{trained.saved.model} cannot be LAST's: --evaluator is for {', '.join(GENERATORS)}."
        )
    if preset not in last.PRESETS:
        raise ArtifactError(
            f"Unknown preset of LAST {preset!r}; choose from {', '.join(last.PRESETS)}."
        )
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise ArtifactError("An evaluator is named twice: its opinion would count twice.")
    by, how = launch.load_evaluators(folders, worth), last.PRESETS[preset]
    variables = {
        "generator": trained.variables,
        "evaluators": {str(k): one for k, one in enumerate(by.variables)},
    }
    if how.sample:
        example["seeds"] = np.arange(len(example["candidate_mask"]), dtype=np.uint32)

    def program(variables, batch):
        made = last.TrainedGenerator(variables["generator"], config, module)
        judges = by._replace(variables=list(variables["evaluators"].values()))
        batch = dict(batch)
        seeds = batch.pop("seeds", None)
        return {"order": last.last_parallel(made, judges, batch, how, seeds=seeds).order}

    try:
        jax.eval_shape(program, variables, example)
    except ValueError as error:
        raise ArtifactError(str(error)) from error
    return variables, program


def _retrieval(
    module: Retriever, config: Any, example: Batch, sizes: dict[str, Any]
) -> dict[str, _Program]:
    alone = {r: x for r, x in example.items() if r not in ("candidate", "candidate_mask")}
    (count,) = jax.export.symbolic_shape("n")
    names = [field.name for field in config.schema.item_fields]
    some = {name: _shape(example["candidate"][name][:, 0], (count,)) for name in names}
    return {
        "user_vectors": _Program(
            lambda v, b: module.user_vectors(v, config, b), _shapes(alone, sizes)
        ),
        "item_vectors": _Program(lambda v, i: module.item_vectors(v, config, i), some),
    }


def _shapes(batch: Batch, sizes: dict[str, Any]) -> Any:
    """Shapes of a batch, with symbols for the sizes that are not fixed."""
    symbols = dict(zip(sizes, jax.export.symbolic_shape("b, c, g"), strict=True))
    size = {name: fixed or symbols[name] for name, fixed in sizes.items()}

    def shapes(part: str, value: Any) -> Any:
        lead = tuple(size[SIZES[axis]] for axis in part_of(part).axes if axis in SIZES)
        return jax.tree.map(lambda x: _shape(x, lead), value)

    return {part: shapes(part, value) for part, value in batch.items()}


def _shape(x: Any, lead: Any = ()) -> jax.ShapeDtypeStruct:
    """Shape and dtype, the first axes being `lead` instead."""
    return jax.ShapeDtypeStruct((*lead, *np.shape(x)[len(lead) :]), x.dtype)


def _flat(variables: Any) -> dict[str, Any]:
    """{path: array}, in the order of the leaves."""
    return {
        "/".join(quote(entry.key, safe="") for entry in path): np.asarray(value)
        for path, value in jax.tree.leaves_with_path(variables)
    }
