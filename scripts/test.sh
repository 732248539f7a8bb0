#!/usr/bin/env bash
# Every check that CI runs, one phase after the other, each with its duration.
# A phase that the rest needs ends the run when it fails; after the others the run goes on, to tell all at once.
source "$(dirname "$0")/lib.sh"

cd "$repo"
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
summary=() failed=()

# phase NAME COMMAND...: runs COMMAND, keeps a copy of its output for counting.
phase() {
    local name=$1 started=$SECONDS status=0 verdict=ok
    shift
    say "==> $name"
    "$@" 2>&1 | tee "$results/$name" || status=$?
    if [ "$status" -ne 0 ]; then
        verdict=FAILED
        failed+=("$name")
    fi
    summary+=("$(printf '%-10s %-6s %s' "$name" "$verdict" "$(spoken $((SECONDS - started)))")")
    say "<== ${summary[-1]}"
    return "$status"
}

finish() {
    say ""
    printf '%s\n' "${summary[@]}" >&2
    local cannot_run=$(($(counted ignored "$results"/*) + $(skipped "$results"/*)))
    echo "$(counted passed "$results"/*) passed, $(counted failed "$results"/*) failed, $cannot_run skipped"
    [ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
}

needed() { phase "$@" || { finish; exit 1; }; }

export CARGO_TERM_PROGRESS_WHEN=never
needed deps scripts/deps.sh
phase tools scripts/tools.sh || true
needed guest scripts/guest.sh
needed build scripts/build.sh dev
phase lint scripts/lint.sh || true
phase units cargo test --workspace --exclude bulkhead-tests --no-fail-fast || true
phase fuzz scripts/fuzz.sh --short || true
BULKHEAD_TEST_HANDLER=qemu phase e2e scripts/e2e.sh || true
BULKHEAD_TEST_HANDLER=native phase e2e-native scripts/e2e.sh || true
phase lab scripts/lab.sh || true
finish
