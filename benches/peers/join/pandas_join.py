"""The join in pandas, with the columns that are needed and Arrow's types throughout: strings as Python objects would take
several times the memory."""

import pandas as pd

from job import PRODUCT, done, given, say

files, out = given()


def read(table, columns, **more):
    return pd.read_parquet(files[table], columns=columns, dtype_backend="pyarrow", **more)


current = read("followers", ["account", "openid"], filters=[("active", "==", True)])
known = current.merge(read("profiles", ["account", "openid", "unionid"]), on=["account", "openid"], how="left")
users = read("users", ["miniprogram", "openid", "unionid"])

# pandas joins null to null, other than SQL.
identities = (
    known.dropna(subset="unionid")
    .rename(columns={"openid": "oa_openid"})
    .merge(users.dropna(subset="unionid").rename(columns={"openid": "mp_openid"}), on="unionid")
)
identities = identities[["unionid", "account", "oa_openid", "miniprogram", "mp_openid"]]
identities.to_parquet(f"{out}/identities.parquet", index=False)
done("identities")

with_unionid = users["unionid"].dropna()
coverage = [
    len(known),
    known["unionid"].count(),
    len(users),
    len(with_unionid),
    with_unionid.isin(known["unionid"].dropna()).sum(),
]
# What is not needed any more is given back, or the peak would be all of it at once.
del known, users, with_unionid
done("coverage")

chosen = identities.drop_duplicates("oa_openid").rename(columns={"oa_openid": "openid"})
chosen = chosen.merge(current, on=["account", "openid"])
# Openids need no escapes; a call of json.dumps for each would take longer than all else.
chosen["variables"] = '{"mp_openid":"' + chosen["mp_openid"] + f'","product":"{PRODUCT}"}}'
chosen["seq"] = range(1, len(chosen) + 1)
chosen[["seq", "openid", "unionid", "variables"]].to_parquet(f"{out}/set.parquet", index=False)
done("set")
say(pd.__version__, coverage)
