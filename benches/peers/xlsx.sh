#!/usr/bin/env bash
# A workbook of users read by lianbo (`load_users`: read, checked, one row an openid, written as Parquet), by openpyxl and by
# python-calamine (each cell once, nothing kept), in turns on the same file.
#
#   LIANBO=…/release/lianbo benches/peers/xlsx.sh [ROWS]
#
# ROWS is 500 000 unless told otherwise. Prints medians of three rounds: seconds, and peak memory of the process.
set -euo pipefail
: "${LIANBO:?say where the release binary is: LIANBO=…/release/lianbo $0}"
rows=${1:-500000}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check openpyxl python-calamine XlsxWriter
mkdir -p "$work/shop/config" "$work/shop/pipelines" "$work/shop/data/exports"
"$work/venv/bin/python" "$here/xlsx.py" make "$work/shop/data/exports/users.xlsx" "$rows"
cat > "$work/shop/config/lianbo.toml" <<'TOML'
[accounts.main]
app_id = "wx0000000000000000"
app_secret = "not used here"
[miniprograms.mall]
app_id = "wx1111111111111111"
TOML
cat > "$work/shop/pipelines/load.toml" <<'TOML'
[stages.mall_users]
kind = "load_users"
source.files = "data/exports/*.xlsx"
columns = { updated_at = "last_login" }
TOML
"$work/venv/bin/python" "$here/xlsx.py" compare "$LIANBO" "$work/shop" "$rows"
