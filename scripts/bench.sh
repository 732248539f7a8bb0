#!/usr/bin/env bash
# Measures what docs/ quotes, and prints a table.
#   bench.sh [ARG...]    arguments of the benchmark program
source "$(dirname "$0")/lib.sh"
source "$repo/scripts/environment.sh"

[ "$(id -u)" = 0 ] || die "the benchmark makes network devices and virtual machines; run it as root"
cd "$repo"
profile=${PROFILE:-release}
scripts/deps.sh
scripts/guest.sh
scripts/build.sh "$profile"
environment "$profile"
exec cargo run --quiet --profile "$profile" -p bulkhead-tests --bin bench -- "$@"
