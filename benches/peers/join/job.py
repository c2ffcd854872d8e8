"""What all peers of the join are given and have to say.

Each is called `python X_join.py FILES OUT`: FILES is a JSON document that names the Parquet parts of `followers`, `profiles`
and `users`, OUT a folder of its own. It makes three things, as lianbo's three stages do:

- identities: unionid, account, oa_openid, miniprogram, mp_openid of current followers who are users, kept;
- coverage: the five counts below, by their definition, not read off the identities;
- the recipient set: of the identities each openid once, who follows, numbered, with the message's variables as JSON, kept.

The peer is not asked for what lianbo does beyond: the README says what that is.
"""

import json
import sys
import time

COUNTS = ("followers", "followers_with_unionid", "users", "users_with_unionid", "matched")
PRODUCT = "巧克力"
THREADS = 2

steps = {}
_since = time.monotonic()


def given():
    """The parts by table, and the folder to write into."""
    with open(sys.argv[1]) as files:
        return json.load(files), sys.argv[2]


def done(step):
    """Notes the seconds of a step that ends here."""
    global _since
    now = time.monotonic()
    steps[step], _since = now - _since, now


def say(version, coverage=()):
    """The version, the coverage row in the order of COUNTS, and the seconds of the steps."""
    print(json.dumps({"version": version, "coverage": dict(zip(COUNTS, map(int, coverage))), "steps": steps}))
