"""An artifact, opened where it serves: programs, arrays and vocabularies in a folder.

    artifact = load("artifact")
    artifact.recommend(records, k=3)          # raw requests, see `zoo.features.record`
    artifact.predict(records)                 # calibrated probabilities of every candidate

    batch = artifact.encode(records)          # the same in two steps
    artifact.score(batch)                     # (requests, candidates)

This module needs JAX, NumPy and `recjax.zoo.features`, and pyarrow for records that are no plain
dicts; no model and no training code is loaded. Every file is checked against the manifest before it
is used.

    README.md         for people: what a request holds, and how it is read
    manifest.json     model, schema and its hash, shapes of the inputs, versions, checksums
    <name>.program    `jax.export`'s serialised StableHLO: `apply`; for retrieval models also
                      `user_vectors` and `item_vectors`
    variables.npz     what the programs take first
    rows/<table>.npy  vocabularies, where a table has one
"""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ..zoo.batch import PARTS, part_of
from ..zoo.calibration import Calibration
from ..zoo.features import (
    ROLES,
    HashedRows,
    KnownRows,
    RequestEncoder,
    Role,
    RowMap,
    Schema,
    require_batch,
    require_rows,
)
from ..zoo.features.file_names import file_of
from . import answers
from .inputs import ArtifactError as ArtifactError
from .inputs import array, check_values, checked, grown, taken

MANIFEST = "manifest.json"
TRITON = "triton_kernel_call"
"""Name of kernel calls in a program for CUDA."""
SIZES = {"B": "requests", "C": "candidates", "G": "groups"}
"""Sizes that a program may fix, by the axes of `zoo.batch`; of any part they are the first axes."""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A loaded artifact. Its methods take a batch of whole-table rows, see `zoo.contract`.

    No requests or no candidates give an empty array. A shorter history than the artifact's is
    padded, and so are fewer requests or candidates where the artifact has a fixed number of them.

    All methods raise ArtifactError: a longer history, too many requests or candidates, what is
    lacking or of another shape, an id that is no row of its table, and a batch that was encoded by
    another schema, where `schema_hash` names the one it was encoded by.

    Attributes:
      manifest: what the export wrote.
      schema: of the batches.
      row_maps: {table: RowMap}; tables without a vocabulary are hashed.
      calibrations: {task: Calibration} of the probabilities; none of models that give none.
    """

    manifest: dict[str, Any]
    schema: Schema
    row_maps: dict[str, RowMap]
    calibrations: dict[str, Calibration]
    _outputs: list[str]
    _variables: dict[str, Any]
    _programs: dict[str, "_Program"]

    def encode(self, records: Any, *, unknown: str = "error") -> dict[str, Any]:
        """The batch of raw request records; see `zoo.features.encode`."""
        return self._encoder(records, unknown=unknown)

    @functools.cached_property
    def _encoder(self) -> RequestEncoder:
        return RequestEncoder(self.schema, self.row_maps, history=self.manifest["history"])

    def predict(self, records: Any, *, unknown: str = "error") -> list[dict[str, np.ndarray]]:
        """Calibrated probabilities {task: (candidates,)} of each record; see `answers.predict`."""
        return answers.predict(self, records, unknown=unknown)

    def recommend(
        self, records: Any, k: int = 10, *, unknown: str = "error"
    ) -> list[list[answers.Recommendation]]:
        """The best `k` candidates of each record, best first; see `answers.recommend`."""
        return answers.recommend(self, records, k, unknown=unknown)

    def warm_up(self, *, requests: int = 1, candidates: int = 100) -> "Artifact":
        """Compiles every size up to these, so that no request waits for it; gives itself back."""
        answers.warm_up(self, requests=requests, candidates=candidates)
        return self

    @property
    def name(self) -> str:
        """Of the model."""
        return self.manifest["model"]

    @property
    def kind(self) -> str:
        """Of the model, see `zoo.contract`."""
        return self.manifest["kind"]

    def outputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Of a batch of whole-table rows: "logit" and "tasks", or "order"."""
        program = self._programs["apply"]
        if "preference" in program.inputs and "preference" not in batch:
            shape = len(batch["candidate_mask"]), program.inputs["preference"].shape[1]
            batch = {**batch, "preference": np.full(shape, 1 / shape[1], np.float32)}
        if "retrieved" in program.inputs and "retrieved" not in batch:
            raise ArtifactError(answers.NO_INDEX.format(self.name))
        if "order" in self._outputs:
            return {"order": self.slate(batch)}
        found = program.call(self._variables, self._fit(program, batch, None))
        requests, candidates = np.shape(batch["candidate_mask"])
        # Slices of device arrays would be programs of their own.
        kept = {name: found[name] for name in ("logit", "tasks")}
        return jax.tree.map(lambda x: np.asarray(x)[:requests, :candidates], kept)

    def probability(self, task: str, logit: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of a task's logits."""
        return self.calibrations.get(task, Calibration()).probability(logit)

    def sizes(self, requests: int, candidates: int) -> tuple[int, int]:
        """Sizes in which so many are computed."""
        fixed = self.manifest["sizes"]
        ladder = answers.rung(requests), answers.rung(candidates, smallest=8)
        return fixed["requests"] or ladder[0], fixed["candidates"] or ladder[1]

    def score(self, batch: dict[str, Any], *, schema_hash: str | None = None) -> jax.Array:
        """Logits (B, C). Where `candidate_mask` is False stands any number."""
        return self._apply("logit", batch, schema_hash)["logit"]

    def tasks(
        self, batch: dict[str, Any], *, schema_hash: str | None = None
    ) -> dict[str, jax.Array]:
        """Logits (B, C) of every task; see `score`."""
        return self._apply("tasks", batch, schema_hash)["tasks"]

    def slate(
        self,
        batch: dict[str, Any],
        *,
        seeds: np.ndarray | None = None,
        schema_hash: str | None = None,
    ) -> jax.Array:
        """Of a generator, and of LAST: (B, M) int32 candidates, the best slot's first.

        -1 where a request has fewer candidates than there are slots. `seeds`, uint32 (B,), are for
        LAST that draws; 0 for all by default, so that the same request gets the same slate.
        """
        draws = "seeds" in self._programs["apply"].inputs
        if not draws and seeds is not None:
            raise ArtifactError("This artifact draws nothing: it takes no seeds.")
        if draws and "seeds" not in batch:
            count = len(array("batch['candidate_mask']", batch.get("candidate_mask", [])))
            seeds = np.zeros(count, np.uint32) if seeds is None else array("seeds", seeds)
            if seeds.shape != (count,) or seeds.dtype != np.uint32:
                raise ArtifactError(
                    f"seeds must be uint32 of shape ({count},), got {seeds.dtype} {seeds.shape}."
                )
            batch = {**batch, "seeds": seeds}
        return self._apply("order", batch, schema_hash)["order"]

    def user_vectors(
        self, batch: dict[str, Any], *, schema_hash: str | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Of a retrieval model: (B, K, d), mask (B, K). Needs no candidates."""
        program = self._retrieval("user_vectors")
        fitted = self._fit(program, batch, schema_hash)
        found = program.call(self._variables, fitted)
        return jax.tree.map(lambda x: x[: len(batch["history_mask"])], found)

    def item_vectors(self, items: dict[str, Any]) -> jax.Array:
        """Of a retrieval model: (N, d) for items {field: (N,)}."""
        program = self._retrieval("item_vectors")
        for name in program.inputs:
            if name not in items:
                raise ArtifactError(
                    f"items must hold {name!r}, got {', '.join(items) or 'nothing'}."
                )
        found = {name: array(f"items[{name!r}]", items[name]) for name in program.inputs}
        count = {x.shape[:1] for x in found.values()}
        if len(count) != 1 or () in count:
            raise ArtifactError("items must hold columns of one length.")
        (size,) = next(iter(count))
        for name, value in found.items():
            found[name] = checked(f"items[{name!r}]", value, program.inputs[name], (size,))
        try:
            require_rows(self.schema, {"candidate": found}, ["candidate"])
        except ValueError as error:
            raise ArtifactError(str(error).replace("batch['candidate']", "items")) from error
        found = grown({"sampled": found}, {"S": max(1, size)})["sampled"]
        return program.call(self._variables, found)[:size]

    def _apply(self, output: str, batch: dict[str, Any], schema_hash: str | None) -> dict[str, Any]:
        """Output of the program, for the batch's own requests and candidates."""
        if output not in self._outputs:
            method = "slate" if "order" in self._outputs else "score"
            gives = ", ".join(self._outputs)
            raise ArtifactError(f"{self.manifest['model']} gives {gives}: use {method}().")
        program = self._programs["apply"]
        found = program.call(self._variables, self._fit(program, batch, schema_hash))
        requests, candidates = np.shape(batch["candidate_mask"])
        if output == "order":
            return {"order": found["order"][:requests]}
        # A slice of all would be a program of its own.
        own = lambda x: x if x.shape == (requests, candidates) else x[:requests, :candidates]
        return jax.tree.map(own, {output: found[output]})

    def _retrieval(self, name: str) -> "_Program":
        if name not in self._programs:
            raise ArtifactError(f"{self.manifest['model']} is no retrieval model: no {name}.")
        return self._programs[name]

    def _fit(
        self, program: "_Program", batch: dict[str, Any], schema_hash: str | None
    ) -> dict[str, Any]:
        """The parts and fields that a program takes, checked, in the sizes that it takes."""
        if schema_hash is not None and schema_hash != self.manifest["schema_hash"]:
            raise ArtifactError(
                f"The batch was made under schema {schema_hash}, the artifact serves "
                f"{self.manifest['schema_hash']}."
            )
        given = taken(batch, program.inputs)
        roles: list[Role] = [role for role in ROLES if role in program.inputs]
        try:
            require_batch(self.schema, given, roles)
            require_rows(self.schema, given, roles)
        except ValueError as error:
            raise ArtifactError(str(error)) from error
        # By the letters of `zoo.batch`.
        sizes: dict[str, int] = {}
        for mask in ("candidate_mask", "history_mask", "retrieved_mask"):
            if mask in given:
                sizes |= dict(zip(PARTS[mask].axes[:2], given[mask].shape, strict=False))
        fitted: dict[str, Any] = {}
        for name, spec in program.inputs.items():
            lead = tuple(sizes[axis] for axis in part_of(name).axes if axis in sizes)
            if isinstance(spec, dict):
                where = {field: f"batch[{name!r}][{field!r}]" for field in spec}
                fitted[name] = {f: checked(where[f], given[name][f], spec[f], lead) for f in spec}
            else:
                fitted[name] = checked(f"batch[{name!r}]", given[name], spec, lead)
        check_values(fitted, sizes)
        return self._grown(fitted, sizes)

    def _grown(self, fitted: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
        wanted = dict(sizes)
        for axis, name in SIZES.items():
            fixed, given = self.manifest["sizes"].get(name), sizes.get(axis, 0)
            if fixed is not None and given > fixed:
                raise ArtifactError(f"The artifact takes at most {fixed} {name}, got {given}.")
            wanted[axis] = fixed or max(1, given)  # The programs' sizes begin at 1.
        wanted["L"] = self.manifest["history"]
        if sizes.get("L", 0) > wanted["L"]:
            raise ArtifactError(
                f"The history must have at most {wanted['L']} events, got {sizes['L']}."
            )
        return grown(fitted, wanted)


class _Program(NamedTuple):
    """A compiled program, and shapes and dtypes of its inputs; sizes may be symbols."""

    call: Callable[..., Any]
    inputs: dict[str, Any]


def load(folder: Path | str) -> Artifact:
    """Opens an artifact.

    Raises:
      ArtifactError: no artifact, or a file that is missing or not what was written.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        other = "; it is a run: recjax.load opens it" if (folder / "config.json").is_file() else ""
        raise ArtifactError(f"{folder} is no artifact (it has no {MANIFEST}){other}.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files, schema = dict(manifest["files"]), Schema.from_dict(manifest["schema"])
        names, needs = list(manifest["programs"]), list(manifest["needs"])
        outputs, platforms = list(manifest["outputs"]["apply"]), list(manifest["platforms"])
        calibrations = {
            name: Calibration(**one) for name, one in manifest.get("calibration", {}).items()
        }
        known = manifest["schema_hash"], int(manifest["history"]), dict(manifest["sizes"])
        unchecked = {*(f"{name}.program" for name in names), "variables.npz"} - files.keys()
        if unchecked or "apply" not in names:
            raise ValueError(f"it lists no {', '.join(sorted(unchecked)) or 'program'}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ArtifactError(f"{folder / MANIFEST} cannot be read: {reason}.") from error
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} is incomplete: {name} is missing.")
        if checksum(folder / name) != expected:
            raise ArtifactError(f"{folder / name} is damaged: its checksum does not match.")
    if schema.hash != known[0]:
        raise ArtifactError(f"{folder}: the schema does not match its own hash.")
    here = platform()
    if here not in platforms:
        raise ArtifactError(
            f"{folder} was made for {', '.join(platforms)}; this process has {here}."
        )
    for name in needs:
        try:
            importlib.import_module(name)  # It tells JAX what the kernels' calls are.
        except ImportError as error:
            raise ArtifactError(
                f"{folder} holds kernels that need {name}: pip install 'recjax[gpu]' ({error})."
            ) from error
    programs = {}
    for name in names:
        exported = jax.export.deserialize(bytearray((folder / f"{name}.program").read_bytes()))
        (_, inputs), _ = exported.in_tree.unflatten(exported.in_avals)
        programs[name] = _Program(jax.jit(exported.call), inputs)
    vocabularies = {table.name: file_of(folder / "rows", table.name) for table in schema.tables}
    row_maps: dict[str, RowMap] = {
        name: KnownRows(np.load(path, allow_pickle=False))
        if path.is_file()
        else HashedRows(schema.table(name).rows)
        for name, path in vocabularies.items()
    }
    with np.load(folder / "variables.npz", allow_pickle=False) as content:
        variables = {name: jnp.asarray(content[name]) for name in content.files}
    return Artifact(manifest, schema, row_maps, calibrations, outputs, variables, programs)


def platform() -> str:
    """The platform of this process, by the name that exports have for it."""
    here = jax.default_backend()
    return "cuda" if here == "gpu" else here


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
