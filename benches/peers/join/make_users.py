"""What a mini program exports: `python make_users.py PROFILES USERS OUT`, PROFILES being a glob of Parquet parts.

Half of the followers with a unionid are users; the others are strangers, of whom one in twenty has no unionid. The rows come
in no order that the followers have: the openids of a mini program say nothing about an account's.
"""

import sys

import duckdb

profiles, users, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
db = duckdb.connect(config={"memory_limit": "2GB", "temp_directory": f"{out}.spill"})
db.sql(f"""
    copy (
        with known as (
            select unionid, row_number() over (order by openid) as n from read_parquet('{profiles}')
            where unionid is not null and hash(openid) % 2 = 0
        )
        select 'm' || substr(sha256('mp' || i), 1, 27) as openid,
               case when known.n is not null then known.unionid
                    when i % 20 <> 0 then 's' || substr(sha256('stranger' || i), 1, 27) end as unionid,
               '2026-11-01 08:00:00' as last_login
        from range(1, {users} + 1) as t(i)
        left join known on known.n = i
        order by openid
    ) to '{out}'
""")
