#!/usr/bin/env bash
# Runs every property test of the workspace with many more cases than `make test` gives it.
#   FUZZ_CASES    cases of each property (default 100000)
source "$(dirname "$0")/lib.sh"

cd "$repo"
export PROPTEST_CASES=${FUZZ_CASES:-100000}
say "fuzz: $PROPTEST_CASES cases of each property"
cargo test --release --workspace --exclude bulkhead-tests -- prop fuzz
