"""The join in polars: lazy, by the streaming engine, which has no limit of memory to be given."""

import polars as pl

from job import PRODUCT, done, given, say

files, out = given()
followers, profiles, users = (pl.scan_parquet(files[table]) for table in ("followers", "profiles", "users"))
current = followers.filter("active").select("account", "openid")
people = profiles.select("account", "openid", "unionid")
users = users.select("miniprogram", "openid", "unionid")

(
    people.join(current, on=["account", "openid"])
    .join(users, on="unionid")  # null is equal to nothing, as in SQL
    .select("unionid", "account", pl.col("openid").alias("oa_openid"), "miniprogram", pl.col("openid_right").alias("mp_openid"))
    .sink_parquet(f"{out}/identities.parquet", engine="streaming")
)
done("identities")

known = current.join(people, on=["account", "openid"], how="left")
counts = [
    known.select(followers=pl.len(), followers_with_unionid=pl.col("unionid").count()),
    users.select(users=pl.len(), users_with_unionid=pl.col("unionid").count()),
    users.join(known, on="unionid", how="semi").select(matched=pl.len()),
]
coverage = [count for table in pl.collect_all(counts, engine="streaming") for count in table.row(0)]
done("coverage")

(
    pl.scan_parquet(f"{out}/identities.parquet")
    .rename({"oa_openid": "openid"})
    .unique("openid", keep="any")
    .join(current, on=["account", "openid"], how="semi")
    .select(
        "openid",
        "unionid",
        variables=pl.struct("mp_openid", product=pl.lit(PRODUCT)).struct.json_encode(),
    )
    .with_row_index("seq", offset=1)
    .sink_parquet(f"{out}/set.parquet", engine="streaming")
)
done("set")
say(pl.__version__, coverage)
