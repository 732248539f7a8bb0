#!/usr/bin/env bash
# Runs the end-to-end suites on binaries that are built already.
#   e2e.sh [ARG...]    arguments for the test binaries, such as part of a test's name
source "$(dirname "$0")/lib.sh"
source "$repo/scripts/environment.sh"

cd "$repo"
environment dev
[ "$(id -u)" = 0 ] || die "the end-to-end suites make namespaces, mounts and devices; run them as root"
exec cargo test -p bulkhead-tests --no-fail-fast -- "$@"
