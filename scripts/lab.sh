#!/usr/bin/env bash
# What CI runs in the lab: our own machines on a real KVM. Each suite has a machine of its own, which a case that hangs
# ends with.
source "$(dirname "$0")/lib.sh"

status=0

# suite SECONDS SUITE [CASE...]: the emulated machine may fail by itself (125): its kernel crashes, or a processor stands
# still. That says nothing about what runs in it, so then, and only then, the suite gets a new one, and is skipped in the end.
suite() {
    local limit=$1 ended machine
    shift
    for machine in 1 2 3; do
        ended=0
        LAB_SECONDS=$limit "$repo/scripts/in-lab.sh" "$@" || ended=$?
        [ "$ended" -eq 125 ] || break
        say "lab: machine $machine of $1 failed by itself, as said above"
    done
    case $ended in
    0) ;;
    125) echo "skipped: $1 in the lab: its emulated machine failed by itself $machine times" ;;
    *) status=1 ;;
    esac
}

suite 300 kvm_boot
suite 200 jail
# A pod takes many seconds here, and each boot is one more chance for the emulated machine to fail; `make test-all` runs
# everything.
suite 400 pod_lifecycle labels a_container_ends removing_a_pod stop_and_remove
suite 400 restart containers_run_on exits_while
suite 400 volumes read_only config_map names_and_links
suite 400 network answers_http reach_each_other
exit "$status"
