"""An artifact, opened where it serves: programs, arrays and vocabularies in a folder.

    artifact = load("artifact")
    batch = artifact.encode(records)          # raw requests, see `zoo.features.record`
    artifact.score(batch)                     # (requests, candidates)

This module needs JAX, NumPy and `recjax.zoo.features`, and pyarrow for `encode` alone; no model and
no training code is loaded. Every file is checked against the manifest before it is used.

    manifest.json     model, schema and its hash, shapes of the inputs, versions, checksums
    <name>.program    `jax.export`'s serialised StableHLO: `apply`; for retrieval models also
                      `user_vectors` and `item_vectors`
    variables.npz     what the programs take first
    rows/<table>.npy  vocabularies, where a table has one
"""

from collections.abc import Callable
import dataclasses
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ..zoo.batch import EVENT_PARTS, PARTS
from ..zoo.features import (
    ROLES,
    HashedRows,
    KnownRows,
    Role,
    RowMap,
    Schema,
    encode,
    require_batch,
    require_rows,
)
from ..zoo.features.file_names import file_of

MANIFEST = "manifest.json"
TRITON = "triton_kernel_call"
"""Name of kernel calls in a program for CUDA."""
_SIZES = {"C": "candidates", "G": "groups"}
SECOND_AXIS = {n: _SIZES[part.axes[1]] for n, part in PARTS.items() if part.axes[1:2] in _SIZES}
"""Size of an artifact along the second axis of a part."""


class ArtifactError(ValueError):
    """An artifact cannot be made, or not be used as it is; the message is one line."""


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
    """

    manifest: dict[str, Any]
    schema: Schema
    row_maps: dict[str, RowMap]
    _inputs: dict[str, list[str]]
    _outputs: list[str]
    _sizes: dict[str, int | None]
    _variables: dict[str, Any]
    _programs: dict[str, Callable[..., Any]]

    def encode(self, records: Any, *, unknown: str = "error") -> dict[str, Any]:
        """The batch of raw request records; see `zoo.features.encode`."""
        return encode(
            records,
            self.schema,
            self.row_maps,
            history=self.manifest["history"],
            unknown=unknown,
        )

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
        LAST that draws; 0, 1, ... by default, so that the same request gets the same slate.
        """
        if "seeds" in self._inputs["apply"]:
            count = len(np.asarray(batch["candidate_mask"]))
            seeds = np.arange(count, dtype=np.uint32) if seeds is None else np.asarray(seeds)
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
        found = program(self._variables, self._fit("user_vectors", batch, schema_hash))
        return jax.tree.map(lambda x: x[: len(batch["history_mask"])], found)

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
        count = len(items[wanted[0].name])
        return program(self._variables, _grown(items, (max(1, count),)))[:count]

    def _apply(self, output: str, batch: dict[str, Any], schema_hash: str | None) -> dict[str, Any]:
        """Output of the program, for the batch's own requests and candidates."""
        if output not in self._outputs:
            method = "slate" if "order" in self._outputs else "score"
            gives = ", ".join(self._outputs)
            raise ArtifactError(f"{self.manifest['model']} gives {gives}: use {method}().")
        found = self._programs["apply"](self._variables, self._fit("apply", batch, schema_hash))
        requests, candidates = np.shape(batch["candidate_mask"])
        if output == "order":
            return {"order": found["order"][:requests]}
        return jax.tree.map(lambda x: x[:requests, :candidates], {output: found[output]})

    def _retrieval(self, name: str) -> Callable[..., Any]:
        if name not in self._programs:
            raise ArtifactError(f"{self.manifest['model']} is no retrieval model: no {name}.")
        return self._programs[name]

    def _fit(self, program: str, batch: dict[str, Any], schema_hash: str | None) -> dict[str, Any]:
        """The roles and fields that a program takes, in the sizes that it takes."""
        if schema_hash is not None and schema_hash != self.manifest["schema_hash"]:
            raise ArtifactError(
                f"The batch was made under schema {schema_hash}, the artifact serves "
                f"{self.manifest['schema_hash']}."
            )
        wanted = self._inputs[program]
        roles: list[Role] = [role for role in ROLES if role in wanted]
        try:
            require_batch(self.schema, batch, roles)
            require_rows(self.schema, batch, roles)
        except ValueError as error:
            raise ArtifactError(str(error)) from error
        for role in wanted:
            if role not in batch and role not in ROLES:  # A role without fields may be left out.
                raise ArtifactError(f"batch must hold {role!r}, got {', '.join(batch)}.")
        taken = {role: batch[role] for role in wanted if role not in roles}
        for role in roles:
            taken[role] = {f.name: batch[role][f.name] for f in self.schema.role(role)}
        sizes = {"requests": len(next(iter(_leaves(taken))))}
        for role, name in SECOND_AXIS.items():
            for leaf in _leaves(taken.get(role, {})):
                sizes[name] = np.shape(leaf)[1]
        for name, given in sizes.items():
            fixed = self._sizes.get(name)
            if fixed is not None and given > fixed:
                raise ArtifactError(f"The artifact takes at most {fixed} {name}, got {given}.")
            sizes[name] = fixed or max(1, given)  # The programs' sizes begin at 1.
        length = self.manifest["history"]
        if "history_mask" in taken and np.shape(taken["history_mask"])[1] > length:
            given = np.shape(taken["history_mask"])[1]
            raise ArtifactError(f"The history must have at most {length} events, got {given}.")

        def lead(role: str) -> tuple[int, ...]:
            if role in EVENT_PARTS:
                return sizes["requests"], length
            more = (sizes[SECOND_AXIS[role]],) if role in SECOND_AXIS else ()
            return sizes["requests"], *more

        return {role: _grown(value, lead(role)) for role, value in taken.items()}


def _leaves(value: Any) -> list[Any]:
    return jax.tree.leaves(value)


def _grown(value: Any, lead: tuple[int, ...]) -> Any:
    """Zeros behind what each array holds along its first axes, up to the sizes `lead`."""

    def grow(x):
        missing = [(0, size - has) for size, has in zip(lead, np.shape(x), strict=False)]
        if not any(more for _, more in missing):
            return x
        return np.pad(x, missing + [(0, 0)] * (np.ndim(x) - len(lead)))

    return jax.tree.map(grow, value)


def load(folder: Path | str) -> Artifact:
    """Opens an artifact.

    Raises:
      ArtifactError: no artifact, or a file that is missing or not what was written.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder} is no artifact (it has no {MANIFEST}).")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files, schema = manifest["files"], Schema.from_dict(manifest["schema"])
        inputs, outputs, sizes = (manifest[key] for key in ("inputs", "outputs", "sizes"))
        needs = manifest["needs"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / MANIFEST} cannot be read: {error}") from error
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} is incomplete: {name} is missing.")
        if checksum(folder / name) != expected:
            raise ArtifactError(f"{folder / name} is damaged: its checksum does not match.")
    if schema.hash != manifest["schema_hash"]:
        raise ArtifactError(f"{folder}: the schema does not match its own hash.")
    for name in needs:
        try:
            importlib.import_module(name)  # It tells JAX what the kernels' calls are.
        except ImportError as error:
            raise ArtifactError(
                f"{folder} holds kernels that need {name}: pip install 'recjax[gpu]' ({error})."
            ) from error
    programs = {}
    for name in manifest["programs"]:
        content = bytearray((folder / f"{name}.program").read_bytes())
        programs[name] = jax.jit(jax.export.deserialize(content).call)
    vocabularies = {table.name: file_of(folder / "rows", table.name) for table in schema.tables}
    row_maps: dict[str, RowMap] = {
        name: KnownRows(np.load(path, allow_pickle=False))
        if path.is_file()
        else HashedRows(schema.table(name).rows)
        for name, path in vocabularies.items()
    }
    with np.load(folder / "variables.npz", allow_pickle=False) as content:
        variables = {name: jnp.asarray(content[name]) for name in content.files}
    return Artifact(
        manifest, schema, row_maps, inputs, outputs["apply"], sizes, variables, programs
    )


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
