"""Whether all made the same: `python check.py FOLDER/PEER …`. Of each the coverage row, how many identities and recipients
there are, how many of them different, and the sum of their hashes, which does not depend on the order."""

import json
import sys
from pathlib import Path

import duckdb

db = duckdb.connect(config={"memory_limit": "2GB"})


def outcome(folder):
    found = {"coverage": json.loads((folder / "coverage.json").read_text())}
    for table, names, columns in (
        ("identities", ["identities.parquet", "identities.csv"], "unionid, oa_openid, mp_openid"),
        ("recipients", ["set.parquet", "recipients.csv"], "openid"),
    ):
        path = next(folder / name for name in names if (folder / name).exists())
        rows, different, total = db.sql(
            f"select count(*), count(distinct hash({columns})), sum(hash({columns})::hugeint) from '{path}'"
        ).fetchone()
        found[table] = {"rows": rows, "different": different, "hash": int(total)}
    return found


outcomes = {Path(folder).name: outcome(Path(folder)) for folder in sys.argv[1:]}
for name, found in outcomes.items():
    print(f"{name}: {json.dumps(found)}", file=sys.stderr)
if len({json.dumps(found, sort_keys=True) for found in outcomes.values()}) > 1:
    sys.exit("check.py: they did not all make the same")
