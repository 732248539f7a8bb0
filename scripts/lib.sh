# Helpers of the scripts beside this file; sourced, not run.
# shellcheck shell=bash

set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$repo/target}
cache=${XDG_CACHE_HOME:-${HOME:?HOME or XDG_CACHE_HOME must be set}/.cache}/bulkhead

# say TEXT: one line for the person who watches. Standard output is for results.
say() { printf '%s\n' "$*" >&2; }

# die TEXT: says why, and ends the script.
die() {
    say "error: $*"
    exit 1
}

# spoken SECONDS: 75 -> 1m15s
spoken() { printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); }

# cargo_dir PROFILE: the directory below target that cargo puts this profile's programs in.
cargo_dir() { if [ "$1" = dev ]; then echo "$target/debug"; else echo "$target/$1"; fi; }

# counted WORD LOG...: sum of "N WORD" in the result lines of test binaries (passed, failed, ignored).
counted() {
    local word=$1
    shift
    cat "$@" | sed -n "s/^test result:.* \([0-9][0-9]*\) $word;.*/\1/p" | awk '{ sum += $1 } END { print sum + 0 }'
}

# skipped LOG...: how many cases said that they cannot run here.
skipped() { cat "$@" | grep -c '^skipped: ' || true; }

# quietly WHAT COMMAND...: runs COMMAND, shows that time passes, and its output only if it fails.
quietly() {
    local what=$1 log started=$SECONDS status=0 ticker
    shift
    log=$(mktemp)
    # The second condition ends it when this script was killed.
    (
        exec 9>&-
        while sleep 15 && kill -0 $$ 2>/dev/null; do say "$what: $(spoken $((SECONDS - started)))"; done
    ) &
    ticker=$!
    "$@" >"$log" 2>&1 </dev/null || status=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    if [ "$status" -ne 0 ]; then
        tail -n 40 "$log" >&2
        say "$what: failed with status $status"
    fi
    rm -f "$log"
    return "$status"
}
