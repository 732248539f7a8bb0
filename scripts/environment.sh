# Tells the suites in tests/, the demo and the benchmark where the artifacts are; sourced after lib.sh.
#   BULKHEAD_BIN BULKHEAD_VMM BULKHEAD_AGENT    programs
#   BULKHEAD_KERNEL BULKHEAD_INITRAMFS          what a pod boots
#   BULKHEAD_CRICTL BULKHEAD_CRITEST            unset where there are none
#   BULKHEAD_CDI_REFERENCE                      likewise
#   BULKHEAD_NRI                                directory of NRI plugins; likewise
# shellcheck shell=bash

# environment PROFILE: exports the above for programs built with this cargo profile.
environment() {
    local programs tools reference nri
    programs=$(cargo_dir "$1")
    export BULKHEAD_BIN=$programs/bulkhead
    export BULKHEAD_VMM=$programs/bulkhead-vmm
    export BULKHEAD_AGENT=$target/x86_64-unknown-linux-gnu/agent/bulkhead-agent
    export BULKHEAD_KERNEL=$target/guest/vmlinux
    export BULKHEAD_INITRAMFS=$target/guest/initramfs
    tools=$("$repo/scripts/tools.sh")
    if [ -n "$tools" ]; then
        export BULKHEAD_CRICTL=$tools/crictl BULKHEAD_CRITEST=$tools/critest
    elif command -v crictl >/dev/null; then
        export BULKHEAD_CRICTL=$(command -v crictl)
    fi
    reference=$("$repo/scripts/cdi-reference.sh")
    [ -z "$reference" ] || export BULKHEAD_CDI_REFERENCE=$reference
    nri=$("$repo/scripts/nri.sh")
    [ -z "$nri" ] || export BULKHEAD_NRI=$nri
}
