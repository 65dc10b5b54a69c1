"""A trained run as StableHLO: programs, arrays and vocabularies that serve without the zoo's code.

    recjax export runs/din-market-1 --format stablehlo --out artifact

    manifest.json     model, schema and its hash, shapes of the inputs, versions, checksums
    <name>.program    `jax.export`'s serialised StableHLO, for CPU, CUDA and TPU: `apply`, and for
                      retrieval models `user_vectors` and `item_vectors`
    variables.npz     what the programs take first
    rows/<table>.npy  vocabularies, where a table has one

The numbers of requests, of candidates and of groups are symbolic: one program serves them all.
The history has the length that the run was trained with. Every file is checked against the
manifest before it is used.
"""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
import shutil
from typing import Any
from urllib.parse import quote, unquote

import jax
import jax.numpy as jnp
import numpy as np

from ..train import launch, run
from ..zoo.contract import Batch, served
from ..zoo.features import (
    ROLES,
    KnownRows,
    Role,
    Schema,
    example_batch,
    require_batch,
    require_rows,
)

PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST = "manifest.json"
_AGREE = 1e-5
_LOGITS = ("logit", "tasks")
# Roles of several candidates, or groups, per request.
_SEVERAL = (
    "candidate",
    "candidate_mask",
    "group",
    "retrieved",
    "retrieved_mask",
    "retrieved_age",
)


class ArtifactError(ValueError):
    """An artifact cannot be used as it is; the message is one line."""


def export_run(folder: Path | str, out: Path | str) -> dict[str, Any]:
    """Exports the best variables of a run, and proves that the artifact gives the same scores.

    Args:
      folder: of a run.
      out: folder of the artifact; absent or empty.

    Returns:
      The manifest, with `largest_difference` to the model itself on a random batch.

    Raises:
      RunError: no run, or `out` holds something.
      ArtifactError: the artifact does not give the model's scores.
    """
    folder, out = Path(folder), Path(out)
    run.require_free(out)
    trained = launch.load_run(folder)
    module, config, saved = trained.module, trained.config, trained.saved
    history = saved.settings.history
    batch = _example(config.schema, module.requirements(config), history)
    if not saved.has_clock:  # The model never saw an age.
        batch = {role: x for role, x in batch.items() if not role.endswith("_age")}

    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    programs = _programs(module, config, batch)
    for name, (program, inputs) in programs.items():
        exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(
            jax.tree.map(_shape, trained.variables), inputs
        )
        (aside / f"{name}.program").write_bytes(bytes(exported.serialize()))
    _save_variables(aside / "variables.npz", trained.variables)
    if (folder / "rows").is_dir():
        shutil.copytree(folder / "rows", aside / "rows")
    manifest = {
        "format": "stablehlo",
        "model": saved.model,
        "kind": module.KIND,
        "options": saved.options,
        "data": saved.source,
        "schema": config.schema.to_dict(),
        "schema_hash": config.schema.hash,
        "history": history,
        "programs": sorted(programs),
        "inputs": {name: sorted(inputs) for name, (_, inputs) in programs.items()},
        "platforms": list(PLATFORMS),
        "versions": run.versions(),
        "date": run.now(),
        "files": {
            str(path.relative_to(aside)): _checksum(path)
            for path in sorted(aside.rglob("*"))
            if path.is_file()
        },
    }
    run.write_json(aside / MANIFEST, manifest)
    expected = jax.jit(lambda v, b: module.apply(v, config, b).logit)(trained.variables, batch)
    actual = load(aside).score(batch)
    difference = float(jnp.abs(actual - expected).max())
    if not difference <= _AGREE * max(1.0, float(jnp.abs(expected).max())):
        raise ArtifactError(f"The exported {saved.model} differs from the model by {difference}.")
    if out.is_dir():
        out.rmdir()
    aside.rename(out)
    return {"out": str(out), **manifest, "largest_difference": difference}


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A loaded artifact.

    Attributes:
      manifest: what `export_run` wrote. schema: of the batches.
      row_maps: {table: KnownRows} for tables with a vocabulary; `zoo.features.encode` takes them.
    """

    manifest: dict[str, Any]
    schema: Schema
    row_maps: dict[str, KnownRows]
    _variables: Any
    _programs: dict[str, Callable[..., Any]]

    def score(self, batch: Batch) -> jax.Array:
        """Logits (B, C) of a batch of whole-table rows, laid out as `zoo.contract` says.

        Only those of real candidates mean something: where `candidate_mask` is False stands any
        number. No requests or no candidates give an empty array. A shorter history than the
        artifact's is padded.

        Raises:
          ArtifactError: a longer history, what is lacking or of another shape, and an id that is
            no row of its table.
        """
        return self._apply(batch)["logit"]

    def tasks(self, batch: Batch) -> dict[str, jax.Array]:
        """Logits (B, C) of every task; see `score`."""
        return self._apply(batch)["tasks"]

    def user_vectors(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Of a retrieval model: (B, K, d), mask (B, K). Needs no candidates."""
        program = self._retrieval("user_vectors")
        found = program(self._variables, self._fit("user_vectors", batch))
        return found if len(batch["history_mask"]) else jax.tree.map(lambda x: x[:0], found)

    def item_vectors(self, items: dict[str, Any]) -> jax.Array:
        """Of a retrieval model: (N, d) for items {field: (N,)}."""
        program, wanted = self._retrieval("item_vectors"), self.schema.item_fields
        for field in wanted:
            if field.name not in items:
                raise ArtifactError(
                    f"items must hold {field.name!r}, got {', '.join(items) or 'nothing'}."
                )
        items = {field.name: items[field.name] for field in wanted}
        try:
            require_rows(self.schema, {"candidate": items}, ["candidate"])
        except ValueError as error:
            raise ArtifactError(str(error)) from error
        found = program(self._variables, jax.tree.map(_at_least_one, items))
        return found if len(items[wanted[0].name]) else found[:0]

    def _apply(self, batch: Batch) -> dict[str, Any]:
        """What the program says of the batch, no more requests and candidates than it holds."""
        found = self._programs["apply"](self._variables, self._fit("apply", batch))
        requests, candidates = np.shape(batch["candidate_mask"])
        if requests and candidates:
            return found
        return jax.tree.map(lambda x: x[:requests, :candidates], {k: found[k] for k in _LOGITS})

    def _retrieval(self, name: str) -> Callable[..., Any]:
        if name not in self._programs:
            raise ArtifactError(f"{self.manifest['model']} is no retrieval model: no {name}.")
        return self._programs[name]

    def _fit(self, program: str, batch: Batch) -> Batch:
        """The roles and fields that a program takes, the history as long as it takes it."""
        wanted = self.manifest["inputs"][program]
        roles: list[Role] = [role for role in ROLES if role in wanted]
        try:
            require_batch(self.schema, batch, roles)
            require_rows(self.schema, batch, roles)
        except ValueError as error:
            raise ArtifactError(str(error)) from error
        for role in wanted:
            if role not in batch and role not in ROLES:  # A role without fields may be left out.
                raise ArtifactError(f"batch must hold {role!r}, got {', '.join(batch)}.")
        length = self.manifest["history"]
        _, given = np.shape(batch["history_mask"])
        if given > length:
            raise ArtifactError(f"The history must have at most {length} events, got {given}.")
        taken = {role: batch[role] for role in wanted if role not in roles}
        for role in roles:
            taken[role] = {f.name: batch[role][f.name] for f in self.schema.role(role)}
        wider = lambda x: np.pad(x, [(0, 0), (0, length - given)] + [(0, 0)] * (np.ndim(x) - 2))
        grown = {
            role: jax.tree.map(wider, taken[role])
            for role in ("history", "history_mask", "history_age")
            if role in taken
        }
        filled = {role: 2 if role in _SEVERAL else 1 for role in wanted}
        return {
            role: jax.tree.map(functools.partial(_at_least_one, axes=filled[role]), value)
            for role, value in {**taken, **grown}.items()
        }


def _at_least_one(x: Any, axes: int = 1) -> Any:
    """Zeros where the first `axes` axes hold nothing: the programs' sizes begin at 1."""
    missing = [(0, int(size == 0)) for size in np.shape(x)[:axes]]
    if not any(more for _, more in missing):
        return x
    return np.pad(x, missing + [(0, 0)] * (np.ndim(x) - axes))


def load(folder: Path | str) -> Artifact:
    """Opens an artifact; needs JAX, and none of the code that made it.

    Raises:
      ArtifactError: no artifact, or a file that is missing or not what was written.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder} is no artifact (it has no {MANIFEST}).")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files, schema = manifest["files"], Schema.from_dict(manifest["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / MANIFEST} cannot be read: {error}") from error
    for name, checksum in files.items():
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} is incomplete: {name} is missing.")
        if _checksum(folder / name) != checksum:
            raise ArtifactError(f"{folder / name} is damaged: its checksum does not match.")
    if schema.hash != manifest["schema_hash"]:
        raise ArtifactError(f"{folder}: the schema does not match its own hash.")
    programs = {
        name: jax.jit(
            jax.export.deserialize(bytearray((folder / f"{name}.program").read_bytes())).call
        )
        for name in manifest["programs"]
    }
    vocabularies = {table.name: run.rows_file(folder, table.name) for table in schema.tables}
    row_maps = {
        name: KnownRows(np.load(path, allow_pickle=False))
        for name, path in vocabularies.items()
        if path.is_file()
    }
    return Artifact(manifest, schema, row_maps, _load_variables(folder / "variables.npz"), programs)


def _example(schema: Schema, requirements: Any, history: int) -> Batch:
    batch = example_batch(
        schema, batch=3, history=history, candidates=2, retrieved=requirements.retrieved
    )
    return served(batch)


def _programs(module: Any, config: Any, batch: Batch) -> dict[str, tuple[Any, Any]]:
    """name -> a pure function of (variables, inputs), and the shapes of its inputs."""
    inputs = _symbolic(batch)
    programs: dict[str, tuple[Any, Any]] = {
        "apply": (lambda v, b: module.apply(v, config, b)._asdict(), inputs)
    }
    if module.KIND == "retrieval":
        size = jax.export.symbolic_shape("n")
        names = [field.name for field in config.schema.item_fields]
        items = {n: _shape(batch["candidate"][n], size, 2) for n in names}
        alone = {r: x for r, x in inputs.items() if r not in ("candidate", "candidate_mask")}
        programs["user_vectors"] = (lambda v, b: module.user_vectors(v, config, b), alone)
        programs["item_vectors"] = (lambda v, i: module.item_vectors(v, config, i), items)
    return programs


def _symbolic(batch: Batch) -> Any:
    """Shapes of a batch with symbolic numbers of requests, candidates and groups."""
    b, c, g = jax.export.symbolic_shape("b, c, g")
    second = {role: g if role.startswith("retrieved") else c for role in _SEVERAL}

    def shape(role: str) -> Callable[[Any], jax.ShapeDtypeStruct]:
        lead = (b, second[role]) if role in second else (b,)
        return lambda x: _shape(x, lead, len(lead))

    return {role: jax.tree.map(shape(role), value) for role, value in batch.items()}


def _shape(x: Any, lead: Any = (), replaced: int = 0) -> jax.ShapeDtypeStruct:
    """Shape and dtype, the first `replaced` axes being `lead` instead."""
    return jax.ShapeDtypeStruct((*lead, *x.shape[replaced:]), x.dtype)


def _save_variables(path: Path, variables: Any) -> None:
    flat: dict[str, Any] = {
        "/".join(quote(entry.key, safe="") for entry in key): np.asarray(value)
        for key, value in jax.tree.leaves_with_path(variables)
    }
    np.savez(path, **flat)


def _load_variables(path: Path) -> Any:
    variables: dict[str, Any] = {"tables": {}, "params": {}, "batch_stats": {}}
    with np.load(path, allow_pickle=False) as content:
        for name in content.files:
            *folders, leaf = map(unquote, name.split("/"))
            held = variables
            for folder in folders:
                held = held.setdefault(folder, {})
            held[leaf] = jnp.asarray(content[name])
    return variables


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
