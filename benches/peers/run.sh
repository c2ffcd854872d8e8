#!/bin/sh
# The same template message to the same people through lianbo and through two client libraries, against its simulator.
#
#   benches/peers/run.sh [PEOPLE [SLOW]]     60000 people; wechatpy sends to the first SLOW of them, PEOPLE where left out
#
# LIANBO   the program, a release build (else the one on the path)
# ROUNDS   how often each is measured; the table has the medians (3)
#
# Wants GNU time (apt-get install time), curl, node with npm, and python3 with venv. All is installed into a temporary
# folder that is removed at the end. Prints a Markdown table on stdout, and each measurement on stderr as it is taken.
set -eu

people=${1:-60000}
slow=${2:-$people}
rounds=${ROUNDS:-3}
lianbo=$(command -v "${LIANBO:-lianbo}") || { echo "run.sh: set LIANBO to the program" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
simulator=

stop_simulator() {
    [ -z "$simulator" ] && return
    kill "$simulator" 2>/dev/null || true
    wait "$simulator" 2>/dev/null || true
    simulator=
}
trap 'stop_simulator; rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM

{
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install -q --disable-pip-version-check 'wechatpy[cryptography]==1.8.18' requests==2.34.2 urllib3==2.8.0
    npm install --silent --no-audit --no-fund --prefix "$folder" co-wechat-api@3.11.0 httpx@2.3.3
} >&2
# What a proxy would add is nobody's own work.
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY

# json EXPRESSION: of the document `d` on stdin.
json() { python3 -c "import json, sys; d = json.load(sys.stdin); print($1)"; }

start_simulator() {
    # The file is there from the start: an empty one means that it is not ready yet.
    : >"$folder/simulator.json"
    "$lianbo" simulate --port 0 --json -q --followers "$people" --users "$people" --matched "$people" \
        --quota message/template/send=100000000 --quota user/get=100000000 --quota user/info/batchget=100000000 \
        >"$folder/simulator.json" &
    simulator=$!
    while [ ! -s "$folder/simulator.json" ]; do
        kill -0 "$simulator"
        sleep 0.1
    done
    WECHAT_API_BASE=$(json 'd["base_url"]' <"$folder/simulator.json")
    WECHAT_APP_ID=$(json 'd["app_id"]' <"$folder/simulator.json")
    WECHAT_APP_SECRET=$(json 'd["app_secret"]' <"$folder/simulator.json")
    WECHAT_MINIPROGRAM_APP_ID=$(json 'd["miniprogram_app_id"]' <"$folder/simulator.json")
    WECHAT_TEMPLATE_ID=$(json 'd["template_ids"][0]' <"$folder/simulator.json")
    export WECHAT_API_BASE WECHAT_APP_ID WECHAT_APP_SECRET WECHAT_MINIPROGRAM_APP_ID WECHAT_TEMPLATE_ID
}

# A workspace that knows all followers already.
write_workspace() {
    rm -rf "$folder/space"
    mkdir -p "$folder/space/config" "$folder/space/pipelines/campaign"
    cat >"$folder/space/config/lianbo.toml" <<END
[accounts.main]
app_id = "$WECHAT_APP_ID"
app_secret = "$WECHAT_APP_SECRET"
api_base = "$WECHAT_API_BASE"
[accounts.main.quota]
"user/get" = 100000000
"user/info/batchget" = 100000000
"message/template/send" = 100000000
[miniprograms.mall]
app_id = "$WECHAT_MINIPROGRAM_APP_ID"
[engine]
memory_limit = "4GB"
END
    cat >"$folder/space/pipelines/sync.toml" <<END
[stages.followers]
kind = "extract_followers"
[stages.profiles]
kind = "enrich_unionids"
END
    cat >"$folder/space/pipelines/campaign.toml" <<END
[stages.audience]
kind = "materialize_recipients"
account = "main"
[stages.push]
kind = "push_template"
account = "main"
recipients = "audience"
template_id = "$WECHAT_TEMPLATE_ID"
rate = "1000000/s"
concurrency = 64
miniprogram = { name = "mall", pagepath = "pages/sale/index" }
data = { thing1 = "{{ product }}", time2 = "{{ now | datetime }}", amount3 = "39.80元" }
END
    echo "select openid, unionid, '巧克力' as product from profiles where subscribe" \
        >"$folder/space/pipelines/campaign/audience.sql"
    "$lianbo" --workspace "$folder/space" run sync --json -q >/dev/null
}

# Runs a command; processor seconds of user and system and the peak in KiB come into a file, its output into another.
timed() { /usr/bin/time -f '%U %S %M' -o "$folder/usage" "$@" >"$folder/output"; }

measure() {
    sends=$people
    case $1 in
    lianbo)
        write_workspace
        timed "$lianbo" --workspace "$folder/space" run campaign --yes --json -q
        seconds=$(json 'next(s["seconds"] for s in d["stages"] if s["name"] == "push")' <"$folder/output")
        ;;
    wechatpy)
        sends=$slow
        PEER_LIMIT=$sends timed "$folder/venv/bin/python" "$here/wechatpy_send.py"
        seconds=$(json 'd["seconds"]' <"$folder/output")
        ;;
    co-wechat-api)
        PEER_LIMIT=$sends NODE_MODULES=$folder/node_modules timed node "$here/co_wechat_api_send.mjs"
        seconds=$(json 'd["seconds"]' <"$folder/output")
        ;;
    esac
    inbox=$(curl -fsS --noproxy '*' "$WECHAT_API_BASE/_simulator/inbox")
    once=$(echo "$inbox" | json 'd["once"] if d["most_to_one"] == 1 else -1')
    curl -fsS --noproxy '*' -d '{}' "$WECHAT_API_BASE/_simulator/inbox/clear" >/dev/null
    echo "$1 $sends $seconds $(tail -n 1 "$folder/usage") $once" | tee -a "$folder/figures" >&2
    [ "$once" -eq "$sends" ] || { echo "run.sh: not everybody received exactly one: $inbox" >&2; exit 1; }
}

# They take turns, and each is the first of a round once: a machine that is slower for a while is so for all.
round=0
order="lianbo co-wechat-api wechatpy"
while [ "$round" -lt "$rounds" ]; do
    start_simulator
    for program in $order; do measure "$program"; done
    stop_simulator
    order="${order#* } ${order%% *}"
    round=$((round + 1))
done

python3 - "$folder/figures" <<'END'
import statistics, sys

figures = {}
for line in open(sys.argv[1]):
    name, sends, seconds, user, system, peak, once = line.split()
    sends = int(sends)
    cost = (sends / float(seconds), (float(user) + float(system)) / sends * 10_000, int(peak) * 1024 / 1e6)
    figures.setdefault((name, sends), []).append((*cost, int(once)))
print("| program | sends/s | CPU seconds per 10 000 sends | peak memory | received once |")
print("|---|---|---|---|---|")
spread = lambda taken, digits: "{:.{n}f} ({:.{n}f} to {:.{n}f})".format(
    statistics.median(taken), min(taken), max(taken), n=digits
)
for (name, sends), rounds in figures.items():
    rates, processor, peaks, once = zip(*rounds)
    cells = (name, spread(rates, 0), spread(processor, 2), spread(peaks, 0) + " MB", f"{min(once)} of {sends}")
    print("| " + " | ".join(cells) + " |")
END
