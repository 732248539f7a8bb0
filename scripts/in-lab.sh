#!/usr/bin/env bash
# Runs a test suite in the lab (tests/lab): built here, where that is fast, run inside, where KVM is real.
#   in-lab.sh SUITE [ARG...]    arguments for the test binary, such as part of a case's name
#   LAB_SECONDS                 how long it may take inside (600)
#   BULKHEAD_TEST_HANDLER       the runtime handler of the end-to-end suites (microvm)
source "$(dirname "$0")/lib.sh"
source "$repo/scripts/environment.sh"

[ $# -gt 0 ] || die "usage: in-lab.sh SUITE [ARG...]"
suite=$1
shift
cd "$repo"
environment dev
export BULKHEAD_TEST_HANDLER=${BULKHEAD_TEST_HANDLER:-microvm} BULKHEAD_LAB=1
package=bulkhead-tests
[ ! -e "vmm/tests/$suite.rs" ] && [ ! -e "vmm/tests/$suite/main.rs" ] || package=bulkhead-vmm
built=$(cargo test -p "$package" --test "$suite" --no-run 2>&1) || die "$built"
binary=$(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' <<<"$built")
[ -x "$binary" ] || die "cargo built no test $suite: $built"
# Its guest is compiled, which takes minutes inside.
[ "$suite" != kvm_boot ] || "$binary" the_guest_builds >/dev/null

options=(--timeout "${LAB_SECONDS:-600}")
[ "$suite" != systemd ] || options+=(--systemd)
variables=()
while IFS= read -r name; do variables+=("$name=${!name}"); done < <(compgen -e BULKHEAD_)
exec "$repo/tests/lab" "${options[@]}" -- env "${variables[@]}" "$binary" --nocapture "$@"
