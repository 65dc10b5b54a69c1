"""Files of request records."""

import json
from pathlib import Path
import sys
from typing import Any


def read_records(where: Path | str) -> Any:
    """Request records, see `zoo.features.encode`.

    Args:
      where: JSON Lines, one JSON array, or Parquet; "-" reads JSON Lines from standard input.

    Raises:
      ValueError: no such file, or a line that is no record.
    """
    if str(where) == "-":
        return _of_text("standard input", sys.stdin.read())
    path = Path(where)
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    content = path.read_bytes()
    if content.startswith(b"PAR1"):
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path)
    try:
        return _of_text(str(path), content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: neither JSON nor Parquet.") from error


def _of_text(where: str, text: str) -> list[dict[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: cannot be read as JSON: {error}.") from error
        for number, record in enumerate(found, 1):
            _require_record(f"{where}: record {number}", record)
        return found
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # Text may hold other ends of lines.
        if line.strip():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: line {number} is no JSON: {error.msg}.") from error
            _require_record(f"{where}: line {number}", found[-1])
    return found


def _require_record(where: str, record: Any) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be an object, got {record!r:.60}.")
