"""Reads the catalog and the Parquet files it names, again and again, with what analysts use; one line of JSON a look.

Ends when its input does. Every look opens the catalog anew, as a notebook does that is run from the top.
"""
import json
import sys
import threading
import traceback

import duckdb
import pandas
import polars
import pyarrow
import pyarrow.compute
import pyarrow.dataset

CATALOG = sys.argv[1]
TABLES = ["followers", "profiles", "coverage", "identities"]
FIGURES = """
select (select count(*) filter (active) from followers), (select count(*) from profiles),
    (select max_by(followers, date) from coverage where account = 'main' and miniprogram = 'mall'),
    (select count(*) from identities),
    (select max_by(matched, date) from coverage where account = 'main' and miniprogram = 'mall')
"""


def catalog():
    return duckdb.connect(CATALOG, read_only=True)


def files():
    """The current Parquet files of each table, of one moment."""
    with catalog() as connection:
        rows = connection.execute("select table_name, path from catalog_files").fetchall()
    return {table: [path for name, path in rows if name == table] for table in TABLES}


def by_duckdb():
    with catalog() as connection:
        return connection.execute(FIGURES).fetchone()


def by_duckdb_arrow():
    """As R's arrow and others read: record batches that DuckDB hands over."""
    with catalog() as connection:
        tables = {table: pyarrow.table(connection.sql(f"from {table}").arrow()) for table in TABLES}
    return of_arrow(tables)


def by_pyarrow():
    return of_arrow({table: pyarrow.dataset.dataset(parts).to_table() for table, parts in files().items()})


def of_arrow(tables):
    followers, coverage = tables["followers"], tables["coverage"]
    own = pyarrow.compute.and_(
        pyarrow.compute.equal(coverage["account"], "main"), pyarrow.compute.equal(coverage["miniprogram"], "mall")
    )
    last = coverage.filter(own).sort_by([("date", "descending")]).slice(0, 1).to_pylist()[0]
    active = pyarrow.compute.sum(followers["active"]).as_py()
    return active, tables["profiles"].num_rows, last["followers"], tables["identities"].num_rows, last["matched"]


def by_polars():
    tables = {table: polars.concat([polars.read_parquet(part) for part in parts]) for table, parts in files().items()}
    coverage = tables["coverage"].filter(account="main", miniprogram="mall").sort("date", descending=True)
    last = coverage.row(0, named=True)
    active = tables["followers"].filter(polars.col("active")).height
    return active, tables["profiles"].height, last["followers"], tables["identities"].height, last["matched"]


def by_pandas():
    tables = {table: pandas.concat([pandas.read_parquet(part) for part in parts]) for table, parts in files().items()}
    coverage = tables["coverage"]
    own = coverage[(coverage.account == "main") & (coverage.miniprogram == "mall")].sort_values("date")
    last = own.iloc[-1]
    active = int(tables["followers"].active.astype(bool).sum())
    return active, len(tables["profiles"]), int(last.followers), len(tables["identities"]), int(last.matched)


READERS = [by_duckdb, by_duckdb_arrow, by_pyarrow, by_polars, by_pandas]


def main():
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.is_set():
        for reader in READERS:
            line = {"reader": reader.__name__}
            try:
                line["figures"] = [int(figure) for figure in reader()]
            except Exception:
                line["error"] = traceback.format_exc()
            print(json.dumps(line), flush=True)


main()
