"""Checkpoints: Orbax arrays, a JSON note beside them, and a checksum over both.

A checkpoint is a folder named by its step. It is written aside and renamed, so a half-written one
is never taken for a whole one; its checksums are verified before it is read, so a damaged one is
refused, and the one before it is used. It says nothing of the devices that wrote it: arrays are
saved as the host holds them, and restored onto the default device of whoever reads them.
"""

from collections.abc import Iterator
import contextlib
import json
from pathlib import Path
import shutil
import signal
import threading
from typing import Any
import warnings
import zlib

import jax
import numpy as np

_MANIFEST = "manifest.json"
_NOTE = "note.json"
_ARRAYS = "arrays"


class CheckpointError(ValueError):
    """No usable checkpoint; the message says which were tried and what was wrong."""


def save(folder: Path, step: int, state: Any, note: dict[str, Any], *, keep: int = 2) -> Path:
    """Writes `state` (a pytree of arrays) and `note` (JSON) as `folder/<step>`.

    Arrays that several devices hold must be whole on each: a replica is saved once.

    Older checkpoints beyond the newest `keep` are removed afterwards.
    """
    import orbax.checkpoint as ocp

    folder = folder.absolute()
    aside, final = folder / f"{step}.partial", folder / str(step)
    for stale in (aside, final):
        if stale.exists():
            shutil.rmtree(stale)
    aside.mkdir(parents=True)
    with to_the_end(), ocp.StandardCheckpointer() as checkpointer:
        # Orbax would save where each array lies, and want the same devices to read it back.
        checkpointer.save(aside / _ARRAYS, jax.device_get(_plain(state)))
    (aside / _NOTE).write_text(json.dumps(note))
    (aside / _MANIFEST).write_text(json.dumps(_checksums(aside), indent=1, sort_keys=True))
    aside.rename(final)
    for old in steps(folder)[keep:]:
        shutil.rmtree(folder / str(old))
    return final


def restore(folder: Path, like: Any) -> tuple[int, Any, dict[str, Any]]:
    """Reads the newest undamaged checkpoint as (step, state, note), onto JAX's default device.

    Args:
      folder: where `save` wrote.
      like: a pytree of the state's structure, shapes and dtypes (arrays or ShapeDtypeStructs).

    Raises:
      CheckpointError: there is none, all are damaged, or its arrays have other names or shapes.
    """
    import orbax.checkpoint as ocp

    folder = folder.absolute()
    here = jax.sharding.SingleDeviceSharding(_default_device())
    reasons = []
    for step in steps(folder):
        path = folder / str(step)
        damage = _damage(path)
        if damage:
            reasons.append(f"{path} is damaged: {damage}")
            warnings.warn(f"{reasons[-1]}; trying the one before it", stacklevel=2)
            continue
        note = json.loads((path / _NOTE).read_text())
        plain = _plain(like)
        target = {
            k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for k, x in plain.items()
        }
        with ocp.StandardCheckpointer() as checkpointer:
            saved = checkpointer.metadata(path / _ARRAYS)
            _require_same(path, target, saved.item_metadata.tree)
            arrays = checkpointer.restore(path / _ARRAYS, target)
        # In the order of `like`: a dict's own leaves would come sorted by name.
        leaves = [arrays[name] for name in plain]
        return step, jax.tree.unflatten(jax.tree.structure(like), leaves), note
    raise CheckpointError("; ".join(reasons) or f"{folder}: there is no checkpoint.")


def newest_note(folder: Path) -> dict[str, Any]:
    """The note of the newest checkpoint whose note can be read, unverified; {} if there is none."""
    for step in steps(folder):
        with contextlib.suppress(OSError, ValueError):
            return json.loads((folder / str(step) / _NOTE).read_text())
    return {}


def _default_device() -> Any:
    """Default device of JAX: its first, unless it was told otherwise."""
    return next(iter(jax.numpy.zeros(()).devices()))


@contextlib.contextmanager
def to_the_end() -> Iterator[None]:
    """Ctrl-C waits until the block has ended: what it changes is whole, what it writes is written.

    (Orbax writes in threads, which break off loudly.)
    """
    usual = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread()
    if not ours or not callable(usual):  # A job in the background may have to ignore it.
        yield
        return
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if waiting:
        raise KeyboardInterrupt


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that were written to their end, newest first."""
    if not folder.is_dir():
        return []
    return sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit()), reverse=True)


def _plain(state: Any) -> dict[str, Any]:
    """The leaves by path: one flat dict, whatever tuples and classes the state is made of."""
    leaves = jax.tree.flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file but the manifest."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _MANIFEST:
            checksum = 0
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    checksum = zlib.crc32(block, checksum)
            sums[path.relative_to(folder).as_posix()] = [path.stat().st_size, checksum]
    return sums


def _damage(folder: Path) -> str | None:
    """Difference from the manifest, or None."""
    try:
        expected = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{_MANIFEST} is missing or unreadable"
    found = _checksums(folder)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong there"
        if found[name][0] != expected[name][0]:
            return f"{name} has {found[name][0]} bytes, expected {expected[name][0]}"
        if found[name] != expected[name]:
            return f"{name} has changed (checksum)"
    return None


def _require_same(path: Path, target: dict[str, Any], saved: dict[str, Any]) -> None:
    """Explains every difference between what is asked for and what is there."""
    lines = []
    for name in sorted(target.keys() | saved.keys()):
        if name not in saved:
            lines.append(f"{name} is not in it")
        elif name not in target:
            lines.append(f"{name} is in it but not in this model")
        elif tuple(saved[name].shape) != tuple(target[name].shape):
            lines.append(f"{name} has shape {saved[name].shape}, expected {target[name].shape}")
        elif np.dtype(saved[name].dtype) != np.dtype(target[name].dtype):
            lines.append(f"{name} is {saved[name].dtype}, expected {target[name].dtype}")
    if lines:
        more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise CheckpointError(f"{path} is of another model: {'; '.join(lines[:5])}{more}.")
