"""Tables written as files."""

from __future__ import annotations

import json
from typing import Any


def write(path: Any, rows: list[dict[str, Any]]) -> Any:
    """Rows in the format that the ending names."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [separator.join(f'"{value}"' for value in row.values()) for row in rows]
        path.write_text("\n".join([separator.join(rows[0]), *lines]) + "\n")
    return path
