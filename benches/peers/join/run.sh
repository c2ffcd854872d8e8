#!/bin/sh
# The nightly join, the coverage and a campaign's recipient set over the same Parquet files: in lianbo, and as somebody would
# write them by hand in bare DuckDB, polars, pandas, SQLite and PostgreSQL.
#
#   FOLLOWERS=10000000 USERS=20000000 LIANBO=…/release/lianbo benches/peers/join/run.sh
#
# LIANBO     the program, a release build (else the one on the path)
# FOLLOWERS  of the account (1000000); USERS of the mini program (2000000)
# ROUNDS     how often each is measured; the table has the medians (1)
# PEERS      which, in this order ("lianbo duckdb polars pandas sqlite postgres")
# LIMIT      seconds after which a peer is stopped (600); MEMORY the bytes of memory (14e9), SPARE those left on the disk (2e9):
#            it is then reported as stopped
# FOLDER     where all is kept and found again the next time, files and figures; else a temporary folder, removed at the end
#
# Wants python3 with venv, and PostgreSQL's programs (PG_BIN, else the newest of /usr/lib/postgresql). Disk at the size above:
# 3 GB for the files and what is made of them, then 8 GB or more for a database. Prints a Markdown table on stdout, and each
# measurement on stderr as it is taken.
set -eu

followers=${FOLLOWERS:-1000000}
users=${USERS:-2000000}
rounds=${ROUNDS:-1}
peers=${PEERS:-lianbo duckdb polars pandas sqlite postgres}
lianbo=$(command -v "${LIANBO:-lianbo}") || { echo "run.sh: set LIANBO to the program" >&2; exit 1; }
pg_bin=${PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)}
here=$(cd "$(dirname "$0")" && pwd)
folder=${FOLDER:-$(mktemp -d)}
mkdir -p "$folder"
# PostgreSQL does not run as root, and has to get through to its own folder.
chmod 711 "$folder"
space=$folder/space
python=$folder/venv/bin/python
simulator=
server=

as_postgres() { if [ "$(id -u)" -eq 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }

stop_simulator() {
    [ -z "$simulator" ] && return
    kill "$simulator" 2>/dev/null || true
    wait "$simulator" 2>/dev/null || true
    simulator=
}
stop_server() {
    [ -z "$server" ] && return
    as_postgres "$pg_bin/pg_ctl" -D "$folder/postgres/data" -m immediate stop >/dev/null || true
    rm -rf "$folder/postgres"
    server=
}
tidy() {
    stop_simulator
    stop_server
    [ -n "${FOLDER:-}" ] || rm -rf "$folder"
}
trap tidy EXIT
trap 'exit 1' HUP INT TERM

# The same DuckDB as lianbo's: what is compared is what lianbo adds to it.
[ -x "$python" ] || {
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install -q --disable-pip-version-check \
        duckdb==1.5.6 pandas==3.1.1 polars==2.1.0 pyarrow==26.0.1
} >&2
export PYTHONDONTWRITEBYTECODE=1
# What a proxy would add is nobody's own work.
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY

# json EXPRESSION: of the document `d` on stdin.
json() { python3 -c "import json, sys; d = json.load(sys.stdin); print($1)"; }

run_lianbo() { "$lianbo" --workspace "$space" "$@"; }

# start_simulator FOLLOWERS, and the workspace's settings for it.
start_simulator() {
    # The file is there from the start: an empty one means that it is not ready yet.
    : >"$folder/simulator.json"
    "$lianbo" simulate --port 0 --json -q --followers "$1" --users 1 --matched 1 \
        --quota user/get=100000000 --quota user/info/batchget=100000000 >"$folder/simulator.json" &
    simulator=$!
    while [ ! -s "$folder/simulator.json" ]; do
        kill -0 "$simulator"
        sleep 0.1
    done
    told() { json "d['$1']" <"$folder/simulator.json"; }
    mkdir -p "$space/config"
    cat >"$space/config/lianbo.toml" <<EOF
[accounts.main]
app_id = "$(told app_id)"
app_secret = "$(told app_secret)"
api_base = "$(told base_url)"
[accounts.main.quota]
"user/get" = 100000000
"user/info/batchget" = 100000000
[miniprograms.mall]
app_id = "$(told miniprogram_app_id)"
[engine]
memory_limit = "2GB"
EOF
}

# A workspace whose followers and profiles came from the simulator, and whose users were loaded from an export.
make_workspace() {
    rm -rf "$space"
    mkdir -p "$space/pipelines/join" "$space/data/exports/mall"
    start_simulator "$followers"
    cat >"$space/pipelines/sync.toml" <<EOF
[stages.followers]
kind = "extract_followers"
[stages.profiles]
kind = "enrich_unionids"
EOF
    cat >"$space/pipelines/load.toml" <<EOF
[stages.mall_users]
kind = "load_users"
source.files = "data/exports/mall/*.parquet"
columns = { openid = "openid", unionid = "unionid", updated_at = "last_login" }
EOF
    cat >"$space/pipelines/join.toml" <<EOF
[stages.identities]
kind = "join_identities"
[stages.coverage]
kind = "measure_coverage"
[stages.audience]
kind = "materialize_recipients"
account = "main"
EOF
    echo "select oa_openid as openid, unionid, mp_openid, '巧克力' as product from identities" \
        >"$space/pipelines/join/audience.sql"
    run_lianbo run sync --json -q >/dev/null
    stop_simulator
    "$python" "$here/make_users.py" "$space/data/lake/tables/profiles/main/*/*.parquet" "$users" \
        "$space/data/exports/mall/users.parquet"
    run_lianbo run load --json -q >/dev/null
    rm "$space/data/exports/mall/users.parquet"
    : >"$space/made"
}

# note PEER PART: a measurement on stdin becomes a line of the figures.
note() { sed "s/^{/{\"peer\": \"$1\", \"part\": \"$2\", /" | tee -a "$folder/figures" >&2; }
measured() { FOLDER=$folder "$python" "$here/measure.py" "$@" >"$folder/measured"; }
was_stopped() { [ "$(json 'd["stopped"]' <"$folder/measured")" != None ]; }
keep_coverage() { json 'json.dumps(d["said"]["coverage"])' <"$folder/measured" >"$folder/out/$1/coverage.json"; }

measure_lianbo() {
    start_simulator 1
    measured -- "$lianbo" --workspace "$space" run join --json -q
    note lianbo job <"$folder/measured"
    stop_simulator
    was_stopped && return
    run=$(json 'd["said"]["run_id"]' <"$folder/measured")
    run_lianbo sql "select followers, followers_with_unionid, users, users_with_unionid, matched from coverage
        where account = 'main' and miniprogram = 'mall' and run_id = '$run'" --format json |
        json 'json.dumps({name: int(count) for name, count in (d if isinstance(d, list) else d["rows"])[0].items()})' \
            >"$folder/out/lianbo/coverage.json"
    run_lianbo sql "select unionid, oa_openid, mp_openid from identities" --format parquet \
        -o "$folder/out/lianbo/identities.parquet" >/dev/null
    run_lianbo sql "select openid from recipients where run_id = '$run'" --format parquet \
        -o "$folder/out/lianbo/set.parquet" >/dev/null
}

# duckdb, polars, pandas: read the files, leave files.
measure_library() {
    measured -- "$python" "$here/$1_join.py" "$folder/files.json" "$folder/out/$1"
    note "$1" job <"$folder/measured"
    was_stopped || keep_coverage "$1"
}

# sqlite, postgres: want everything brought in first.
measure_database() {
    for part in import job; do
        measured ${server:+--server "$server"} -- "$python" "$here/$1_join.py" "$folder/files.json" "$folder/out/$1" "$part"
        note "$1" "$part" <"$folder/measured"
        was_stopped && return
    done
    keep_coverage "$1"
    "$python" "$here/$1_join.py" "$folder/files.json" "$folder/out/$1" show >/dev/null
}

# About the 2 GB that lianbo and DuckDB are given: 512 MB of its own pages, and for each of the two processes of a query
# twice work_mem for what it hashes. Nothing waits for the disk, as with the others.
start_server() {
    mkdir "$folder/postgres"
    [ "$(id -u)" -ne 0 ] || chown postgres "$folder/postgres"
    as_postgres "$pg_bin/initdb" -D "$folder/postgres/data" -A trust -E UTF8 --locale=C >/dev/null
    PGPORT=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    PGHOST=$folder/postgres
    PGUSER=$(if [ "$(id -u)" -eq 0 ]; then echo postgres; else id -un; fi)
    export PGPORT PGHOST PGUSER
    cat >>"$folder/postgres/data/postgresql.conf" <<EOF
listen_addresses = ''
port = $PGPORT
unix_socket_directories = '$PGHOST'
shared_buffers = 512MB
work_mem = 256MB
maintenance_work_mem = 512MB
effective_cache_size = 4GB
max_parallel_workers_per_gather = 1
max_wal_size = 8GB
wal_level = minimal
max_wal_senders = 0
fsync = off
EOF
    as_postgres "$pg_bin/pg_ctl" -D "$folder/postgres/data" -l "$folder/postgres/log" -w start >/dev/null
    server=$(head -n 1 "$folder/postgres/data/postmaster.pid")
}

measure() {
    rm -rf "$folder/out/$1"
    mkdir -p "$folder/out/$1"
    case $1 in
    lianbo) measure_lianbo ;;
    duckdb | polars | pandas) measure_library "$1" ;;
    sqlite)
        measure_database sqlite
        rm -f "$folder/out/sqlite/join.db"
        ;;
    postgres)
        start_server
        measure_database postgres
        stop_server
        ;;
    *) echo "run.sh: $1 is no peer" >&2; exit 1 ;;
    esac
    rm -rf "$folder/out/$1/spill"
}

{
    [ -e "$space/made" ] || make_workspace
    run_lianbo tables --json | "$python" "$here/list_files.py" "$space" >"$folder/files.json"
} >&2
round=0
while [ "$round" -lt "$rounds" ]; do
    for peer in $peers; do measure "$peer"; done
    round=$((round + 1))
done
# Those who were stopped left no coverage.
# shellcheck disable=SC2046
"$python" "$here/check.py" $(for own in "$folder"/out/*/coverage.json; do dirname "$own"; done)
"$python" "$here/table.py" "$folder/figures"
