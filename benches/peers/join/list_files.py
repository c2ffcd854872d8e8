"""The Parquet parts of the current followers, profiles and users by table, as JSON: `lianbo tables --json` on stdin,
`python list_files.py WORKSPACE`. Each part is read once, so that all who come after find it in the page cache."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as parquet

NAMES = {"followers": "followers", "profiles": "profiles", "mall_users": "users"}
files = {}
for table in json.load(sys.stdin)["tables"]:
    if table["table"] not in NAMES:
        continue
    folders = [f"data/lake/tables/{table['table']}/{own['slice']}/{own['snapshot']}" for own in table["slices"]]
    parts = sorted(part for folder in folders for part in Path(sys.argv[1], folder).glob("*.parquet"))
    rows = sum(parquet.read_metadata(part).num_rows for part in parts)
    assert rows == table["rows"], f"{table['table']}: {rows} rows in the parts, {table['rows']} by the catalog"
    for part in parts:
        part.read_bytes()
    size = sum(part.stat().st_size for part in parts)
    print(f"{table['table']}: {rows} rows in {len(parts)} parts, {size / 1e6:.0f} MB", file=sys.stderr)
    files[NAMES[table["table"]]] = [str(part) for part in parts]
print(json.dumps(files))
