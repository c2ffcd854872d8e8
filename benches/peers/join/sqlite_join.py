"""The join in SQLite: `import` brings the Parquet parts into a database and indexes them, `job` is the join, `show` writes
the set's openids where the check can read them."""

import csv
import sqlite3
import sys

import pyarrow.dataset as dataset

from job import PRODUCT, THREADS, done, given, say

files, out = given()
# A database that can be imported again needs no journal, and no wait for the disk.
db = sqlite3.connect(f"{out}/join.db", isolation_level=None)
db.executescript(f"""
    pragma journal_mode = off;
    pragma synchronous = off;
    pragma cache_size = -1500000; -- KiB
    pragma threads = {THREADS}; -- of sorting, which is all that SQLite can share out
""")


def bring(table, columns):
    names = ", ".join(columns)
    db.execute(f"create table {table} ({names})")
    insert = f"insert into {table} values ({', '.join('?' * len(columns))})"
    db.execute("begin")
    for batch in dataset.dataset(files[table]).to_batches(columns=columns):
        db.executemany(insert, zip(*(column.to_pylist() for column in batch.columns)))
    db.execute("commit")


def bring_all():
    bring("followers", ["account", "openid", "active"])
    bring("profiles", ["account", "openid", "unionid"])
    bring("users", ["miniprogram", "openid", "unionid"])
    # SQLite joins by looking up one row after the other: with all the columns in the index it need not go to the table.
    # Made after the rows, since that sorts them once.
    db.executescript("""
        create unique index followers_by_openid on followers (openid, account, active);
        create unique index profiles_by_openid on profiles (openid, account, unionid);
        create index users_by_unionid on users (unionid, miniprogram, openid);
        analyze;
    """)


def job():
    db.execute("""
        create table identities as
        select profiles.unionid, profiles.account, profiles.openid as oa_openid, users.miniprogram, users.openid as mp_openid
        from profiles
        join followers on followers.account = profiles.account and followers.openid = profiles.openid and followers.active
        join users on users.unionid = profiles.unionid
    """)
    done("identities")
    row = db.execute("""
        select count(*), count(profiles.unionid)
        from followers
        left join profiles on profiles.account = followers.account and profiles.openid = followers.openid
        where followers.active
    """).fetchone()
    row += db.execute("select count(*), count(unionid) from users").fetchone()
    row += db.execute("""
        select count(*)
        from (
            -- Sorted, so that the index of users is walked in its order; `in (…)` took half as long again.
            select profiles.unionid from followers
            join profiles on profiles.account = followers.account and profiles.openid = followers.openid
            where followers.active
            group by profiles.unionid
        ) as f
        join users on users.unionid = f.unionid
    """).fetchone()
    done("coverage")
    db.execute(
        """
        create table recipients as
        select row_number() over () as seq, given.openid, given.unionid,
               json_object('mp_openid', mp_openid, 'product', ?) as variables
        from (
            select oa_openid as openid, unionid, mp_openid, row_number() over (partition by oa_openid) as nth from identities
        ) as given
        join followers on followers.openid = given.openid and followers.account = 'main' and followers.active
        where nth = 1
        """,
        (PRODUCT,),
    )
    done("set")
    return row


def show():
    for table, columns in (("recipients", "openid"), ("identities", "unionid, oa_openid, mp_openid")):
        with open(f"{out}/{table}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            rows = db.execute(f"select {columns} from {table}")
            writer.writerow(column[0] for column in rows.description)
            writer.writerows(rows)


said = {"import": bring_all, "job": job, "show": show}[sys.argv[3]]()
say(sqlite3.sqlite_version, said or ())
