#!/usr/bin/env bash
# What CI runs in the lab: our own machines on a real KVM. Each suite has a machine of its own, which a case that hangs
# ends with.
source "$(dirname "$0")/lib.sh"

status=0

# suite SECONDS SUITE [CASE...]: the emulated machine may fail by itself (125), which says nothing about what runs in it:
# then, and only then, the suite gets a new one, once.
suite() {
    local limit=$1 ended=0
    shift
    LAB_SECONDS=$limit "$repo/scripts/in-lab.sh" "$@" || ended=$?
    if [ "$ended" -eq 125 ]; then
        say "lab: the machine of $1 failed by itself, as said above; $1 runs on a new one"
        ended=0
        LAB_SECONDS=$limit "$repo/scripts/in-lab.sh" "$@" || ended=$?
    fi
    [ "$ended" -eq 0 ] || status=1
}

suite 400 kvm_boot
# A pod takes many seconds here; what does not depend on the monitor runs outside.
suite 500 pod_lifecycle labels a_container_ends removing_a_pod stop_and_remove
suite 600 restart
suite 600 volumes
suite 600 network
exit "$status"
