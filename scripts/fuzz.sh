#!/usr/bin/env bash
# Feeds the parsers of hostile input with far more input than `make test` does: the property tests with random
# input, then the fuzz targets below */fuzz with input that follows the coverage, where cargo-fuzz is installed.
#   FUZZ_CASES      cases of each property (20000)
#   FUZZ_SECONDS    time of each target (60)
source "$(dirname "$0")/lib.sh"

cd "$repo"
export PROPTEST_CASES=${FUZZ_CASES:-20000}
# The arguments of a property have the form `NAME in STRATEGY`.
mapfile -t properties < <(find proto vmm agent host -path '*/fuzz' -prune -o -name '*.rs' -exec \
    perl -0777 -ne 'print "$1\n" while /\bfn (\w+)\(\s*(?:mut )?\w+ in /g' {} + | sort -u)
[ ${#properties[@]} -gt 0 ] || die "no property test was found"
say "fuzz: ${#properties[@]} properties, $PROPTEST_CASES cases each"
cargo test --profile "${PROFILE:-release}" --workspace --exclude bulkhead-tests --no-fail-fast -- "${properties[@]}"

if ! cargo fuzz --version >/dev/null 2>&1; then
    say "fuzz: skipped the coverage-guided targets: cargo-fuzz is not installed (cargo install cargo-fuzz)"
    exit 0
fi
for source in */fuzz/fuzz_targets/*.rs; do
    name=$(basename "$source" .rs)
    say "fuzz: $name, ${FUZZ_SECONDS:-60} s"
    # cargo-fuzz needs unstable flags of the compiler, which a stable one takes with this variable.
    RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir "${source%/fuzz_targets/*}" "$name" -- -max_total_time="${FUZZ_SECONDS:-60}"
done
