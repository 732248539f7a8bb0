#!/usr/bin/env bash
# What CI runs in the lab: our own machines on a real KVM. Each suite has a machine of its own, which a case that hangs
# ends with.
source "$(dirname "$0")/lib.sh"

status=0
LAB_SECONDS=400 "$repo/scripts/in-lab.sh" kvm_boot || status=1
# A pod takes many seconds here; what does not depend on the monitor runs outside.
LAB_SECONDS=500 "$repo/scripts/in-lab.sh" pod_lifecycle labels a_container_ends removing_a_pod stop_and_remove || status=1
LAB_SECONDS=600 "$repo/scripts/in-lab.sh" restart || status=1
LAB_SECONDS=600 "$repo/scripts/in-lab.sh" volumes || status=1
LAB_SECONDS=600 "$repo/scripts/in-lab.sh" network || status=1
exit "$status"
