#!/usr/bin/env bash
# What `make test` leaves out because it is too long for CI: every end-to-end suite and the whole of critest in the lab, on machines
# of our own and on a host kernel whose cgroup v2 has every controller. Each suite has a lab of its own with a time limit.
#   test-all.sh [HANDLER...]    runtime handlers (microvm native)
#   SUITES                      names of the suites (all of tests/tests, kvm_boot and jail)
#   LAB_SECONDS                 how long one suite may take (2400; critest six times as long)
source "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || set -- microvm native
cd "$repo"
logs=$target/test-all
mkdir -p "$logs"
# The harness tests itself, without pods.
suites=${SUITES:-kvm_boot jail $(find tests/tests -name '*.rs' ! -name harness.rs -printf '%f\n' | sed 's/\.rs$//' | sort)}
limit=${LAB_SECONDS:-2400}
# One spec a line, for the summary.
export BULKHEAD_CRITEST_SPECS=1 CARGO_TERM_PROGRESS_WHEN=never
table=() failed=()

# in_lab HANDLER SUITE
in_lab() {
    local handler=$1 suite=$2 seconds=$limit started=$SECONDS status=0 log
    log=$logs/$handler-$suite.log
    [ "$suite" != critest ] || seconds=$((limit * 6))
    say "==> $suite on $handler"
    BULKHEAD_TEST_HANDLER=$handler LAB_SECONDS=$seconds "$repo/scripts/in-lab.sh" "$suite" 2>&1 | tee "$log" || status=$?
    # 124 and 125 are the lab's own: over its time, or it did not get as far as the suite.
    [ "$status" -eq 0 ] || failed+=("$handler/$suite (status $status)")
    table+=("$(printf '%-8s %-22s %3d passed %3d failed %3d skipped  %s' "$handler" "$suite" "$(counted passed "$log")" \
        "$(counted failed "$log")" "$(($(counted ignored "$log") + $(skipped "$log")))" "$(spoken $((SECONDS - started)))")")
}

scripts/deps.sh
scripts/tools.sh >/dev/null
scripts/guest.sh
scripts/build.sh dev
rm -f "$logs"/*.log
for handler in "$@"; do
    for suite in $suites; do
        # Machines without a daemon: the same whatever the handler.
        case $suite in kvm_boot | jail) [ "$handler" = microvm ] || continue ;; esac
        in_lab "$handler" "$suite"
    done
done

for handler in "$@"; do
    [ ! -e "$logs/$handler-critest.log" ] || sed -n "s/^spec: /critest on $handler: /p" "$logs/$handler-critest.log"
done
printf '%s\n' "${table[@]}"
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
