#!/usr/bin/env bash
# Measures the CRI's verbs on the host's own kernel beside containerd and runc, and prints tables.
#   bench-cri.sh [ARG...]    arguments of the benchmark program
# CONTAINERD names a directory with containerd, containerd-shim-runc-v2 and runc; else they are built.
source "$(dirname "$0")/lib.sh"
source "$repo/scripts/environment.sh"

[ "$(id -u)" = 0 ] || die "the benchmark makes network devices and containers; run it as root"
cd "$repo"
profile=${PROFILE:-release}
scripts/deps.sh
scripts/guest.sh
scripts/build.sh "$profile"
environment "$profile"
BULKHEAD_CONTAINERD=${CONTAINERD:-$(scripts/containerd.sh)}
export BULKHEAD_CONTAINERD BULKHEAD_TEST_HANDLER=native
exec cargo run --quiet --profile "$profile" -p bulkhead-tests --bin bench-cri -- "$@"
