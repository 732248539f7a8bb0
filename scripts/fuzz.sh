#!/usr/bin/env bash
# Runs the property tests, which feed parsers of hostile input with random input, for many more cases than
# `make test` does. A failure prints the smallest input that shows it.
#   FUZZ_CASES    cases of each property (20000)
source "$(dirname "$0")/lib.sh"

cd "$repo"
export PROPTEST_CASES=${FUZZ_CASES:-20000}
# Their arguments have the form `NAME in STRATEGY`.
mapfile -t properties < <(find proto vmm agent host -name '*.rs' -exec \
    perl -0777 -ne 'print "$1\n" while /\bfn (\w+)\(\s*(?:mut )?\w+ in /g' {} + | sort -u)
[ ${#properties[@]} -gt 0 ] || die "no property test was found"
say "fuzz: ${#properties[@]} properties, $PROPTEST_CASES cases each"
exec cargo test --profile "${PROFILE:-release}" --workspace --exclude bulkhead-tests --no-fail-fast -- "${properties[@]}"
