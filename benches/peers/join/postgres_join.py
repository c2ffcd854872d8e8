"""The join in PostgreSQL, which runs already and is found by PGHOST and PGPORT: `import` copies the Parquet parts in, `job` is
the join, `show` writes the set's openids where the check can read them."""

import subprocess
import sys

import pyarrow.csv as arrow_csv
import pyarrow.dataset as dataset

from job import PRODUCT, done, given, say

files, out = given()
PSQL = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-F", " ", "-d", "postgres"]
TABLES = {
    "followers": "account text, openid text, active boolean",
    "profiles": "account text, openid text, unionid text",
    "users": "miniprogram text, openid text, unionid text",
}


def ask(sql):
    return subprocess.run(PSQL, input=sql, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def bring(table, columns):
    # Made in the same transaction as it is filled, a table needs no log of what it is filled with (wal_level = minimal).
    psql = subprocess.Popen(
        [*PSQL, "-1", "-c", f"create table {table} ({columns})", "-c", f"copy {table} from stdin (format csv)"],
        stdin=subprocess.PIPE,
    )
    names = [column.split()[0] for column in columns.split(", ")]
    options = arrow_csv.WriteOptions(include_header=False)
    for batch in dataset.dataset(files[table]).to_batches(columns=names):
        arrow_csv.write_csv(batch, psql.stdin, options)
    psql.stdin.close()
    assert psql.wait() == 0, f"copy of {table}"


def bring_all():
    for table, columns in TABLES.items():
        bring(table, columns)
    # No index: where half of all rows are joined PostgreSQL hashes the tables. To know their sizes it has to be asked to look.
    ask("vacuum analyze")


def job():
    ask("""
        create table identities as
        select profiles.unionid, profiles.account, profiles.openid as oa_openid, users.miniprogram, users.openid as mp_openid
        from profiles
        join followers on followers.account = profiles.account and followers.openid = profiles.openid and followers.active
        join users on users.unionid = profiles.unionid
    """)
    done("identities")
    followers = ask("""
        select count(*), count(profiles.unionid)
        from followers
        left join profiles on profiles.account = followers.account and profiles.openid = followers.openid
        where followers.active
    """)
    users = ask("select count(*), count(unionid) from users")
    matched = ask("""
        select count(*) from users where unionid in (
            select profiles.unionid from followers
            join profiles on profiles.account = followers.account and profiles.openid = followers.openid
            where followers.active
        )
    """)
    done("coverage")
    ask(f"""
        create table recipients as
        select row_number() over () as seq, given.openid, given.unionid,
               cast(json_build_object('mp_openid', mp_openid, 'product', '{PRODUCT}') as text) as variables
        from (
            select distinct on (oa_openid) oa_openid as openid, unionid, mp_openid from identities order by oa_openid
        ) as given
        join followers on followers.openid = given.openid and followers.account = 'main' and followers.active
    """)
    done("set")
    return f"{followers} {users} {matched}".split()


def show():
    for table, columns in (("recipients", "openid"), ("identities", "unionid, oa_openid, mp_openid")):
        with open(f"{out}/{table}.csv", "w") as file:
            copy = f"copy (select {columns} from {table}) to stdout (format csv, header)"
            subprocess.run([*PSQL, "-c", copy], check=True, stdout=file)


said = {"import": bring_all, "job": job, "show": show}[sys.argv[3]]()
say(ask("show server_version").split()[0], said or ())
