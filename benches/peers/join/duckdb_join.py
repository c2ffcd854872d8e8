"""The join in bare DuckDB: the SQL that somebody would write by hand, with lianbo's limit of memory."""

import duckdb

from job import PRODUCT, THREADS, done, given, say

files, out = given()
db = duckdb.connect(config={"memory_limit": "2GB", "threads": THREADS, "temp_directory": f"{out}/spill"})
for table, parts in files.items():
    db.read_parquet(parts).create_view(table)

db.sql(f"""
    copy (
        select profiles.unionid, profiles.account, profiles.openid as oa_openid, users.miniprogram, users.openid as mp_openid
        from profiles
        join followers on followers.account = profiles.account and followers.openid = profiles.openid and followers.active
        join users on users.unionid = profiles.unionid
    ) to '{out}/identities.parquet'
""")
done("identities")
coverage = db.sql("""
    with f as (
        select profiles.unionid from followers
        left join profiles on profiles.account = followers.account and profiles.openid = followers.openid
        where followers.active
    )
    select (select count(*) from f), (select count(unionid) from f), count(*), count(unionid),
           (select count(*) from users semi join f on f.unionid = users.unionid)
    from users
""").fetchone()
done("coverage")
db.sql(f"""
    copy (
        select row_number() over () as seq, given.openid, given.unionid,
               cast(to_json(struct_pack(mp_openid := mp_openid, product := '{PRODUCT}')) as varchar) as variables
        from (
            select oa_openid as openid, unionid, mp_openid, row_number() over (partition by oa_openid) as nth
            from '{out}/identities.parquet'
        ) as given
        join followers on followers.openid = given.openid and followers.account = 'main' and followers.active
        where nth = 1
    ) to '{out}/set.parquet'
""")
done("set")
say(duckdb.__version__, coverage)
