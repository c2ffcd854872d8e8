#!/bin/sh
# Fetches the official prebuilt DuckDB library once and prints the folder it lies in.
#
#   scripts/duckdb.sh            prints the folder on stdout; exit 1 if there is nothing to fetch, with the reasons on stderr
#
# Where it is kept:  $LIANBO_CACHE, else $XDG_CACHE_HOME/lianbo, else ~/.cache/lianbo, in duckdb/VERSION.
# A DUCKDB_LIB_DIR that is already set is taken as it is.
#
# Where it comes from, in this order:
#   1. the npm package of DuckDB's own Node bindings, which carries the library. Its archive must have the sha512 that is
#      written below. Only for platforms with a checksum here, and only where npm is installed.
#   2. DuckDB's release page on GitHub. No checksum is published with it: trust in it is trust in HTTPS and GitHub.
# Either must then link, load, and answer with the right version, or it is thrown away. It is unpacked aside and renamed
# into place, so two that run at once do not meet, and an interrupted one leaves nothing half.
set -eu

version=1.5.6
npm_version=1.5.6-r.1
npm_sha512_linux_x64=21772b64913a904a8cd19e30c1d5671811d7fdface4b7dd53cd0300d743f43e16cf386f4e7c41ef78721ac208870d2651bc6375072145387817824315b998dd5

say() { printf 'duckdb.sh: %s\n' "$*" >&2; }

if [ -n "${DUCKDB_LIB_DIR:-}" ]; then
    printf '%s\n' "$DUCKDB_LIB_DIR"
    exit 0
fi

library=libduckdb.so
npm_platform= npm_sha512=
case "$(uname -s)-$(uname -m)" in
Linux-x86_64 | Linux-amd64) release=linux-amd64 npm_platform=linux-x64 npm_sha512=$npm_sha512_linux_x64 ;;
Linux-aarch64 | Linux-arm64) release=linux-arm64 ;;
Darwin-*) release=osx-universal library=libduckdb.dylib ;;
*)
    say "there is no prebuilt DuckDB for $(uname -s) on $(uname -m)"
    exit 1
    ;;
esac

cache=${LIANBO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lianbo}
folder=$cache/duckdb/$version
if [ -f "$folder/$library" ]; then
    printf '%s\n' "$folder"
    exit 0
fi

mkdir -p "$folder"
aside=$(mktemp -d "$folder/fetching.XXXXXX")
trap 'rm -rf "$aside"' EXIT
trap 'exit 1' HUP INT TERM

sha512_of() {
    if command -v sha512sum >/dev/null; then sha512sum "$1"; else shasum -a 512 "$1"; fi | cut -d ' ' -f 1
}

from_npm() {
    package=@duckdb/node-bindings-$npm_platform@$npm_version
    if [ -z "$npm_sha512" ]; then
        say "npm: no checksum is recorded for this platform"
        return 1
    fi
    if ! command -v npm >/dev/null; then
        say "npm: not installed"
        return 1
    fi
    say "fetching $package"
    if ! (cd "$aside" && npm pack --loglevel=error --ignore-scripts --fetch-retries=1 --fetch-retry-mintimeout=1000 "$package") \
        >/dev/null 2>"$aside/npm.log"; then
        say "npm: $(grep -m 1 'error' "$aside/npm.log" || echo 'npm pack failed')"
        return 1
    fi
    archive=$(find "$aside" -name '*.tgz')
    if [ "$(sha512_of "$archive")" != "$npm_sha512" ]; then
        say "npm: the archive of $package has another checksum than the one recorded; not used"
        return 1
    fi
    tar -xzOf "$archive" "package/$library" >"$aside/$library"
}

from_release_page() {
    url=https://github.com/duckdb/duckdb/releases/download/v$version/libduckdb-$release.zip
    if ! command -v curl >/dev/null; then
        say "release page: curl is not installed"
        return 1
    fi
    say "fetching $url"
    curl --fail --location --silent --show-error --connect-timeout 5 --max-time 600 --output "$aside/lib.zip" "$url" >&2 || return 1
    if command -v unzip >/dev/null; then
        unzip -qop "$aside/lib.zip" "$library" >"$aside/$library"
    elif command -v python3 >/dev/null; then
        (cd "$aside" && python3 -m zipfile -e lib.zip .)
    else
        (cd "$aside" && tar -xf lib.zip "$library")
    fi
}

# Links a program of three lines with the library, as the build will, and asks for the version.
answers_with_its_version() {
    rm -f "$aside/probe"
    cat >"$aside/probe.c" <<'PROBE'
#include <stdio.h>
extern const char *duckdb_library_version(void);
int main(void) { return puts(duckdb_library_version()) < 0; }
PROBE
    "${CC:-cc}" -o "$aside/probe" "$aside/probe.c" -L"$aside" -lduckdb -Wl,-rpath,"$aside" >&2 || return 1
    answer=$("$aside/probe") || return 1
    if [ "$answer" != "v$version" ]; then
        say "the library says it is $answer, not v$version; not used"
        return 1
    fi
}

for source in from_npm from_release_page; do
    if "$source" && answers_with_its_version; then
        chmod 644 "$aside/$library"
        mv -f "$aside/$library" "$folder/$library"
        say "kept $folder/$library"
        printf '%s\n' "$folder"
        exit 0
    fi
    rm -f "$aside/$library"
done
say "no prebuilt DuckDB $version could be had"
exit 1
