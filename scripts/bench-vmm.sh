#!/usr/bin/env bash
# Compares bulkhead-vmm with other monitors in the lab, on one KVM, kernel and initramfs, and prints a table.
#   bench-vmm.sh [boot|transfer] [ROUNDS]   median, minimum and maximum of so many rounds (5)
#   bench-vmm.sh initcalls          what the guest kernel's boot consists of, instead, by bulkhead-vmm's clock
#   FIRECRACKER                     a firecracker binary to compare with, too; not below /tmp, of which the lab has its own
#   BULKHEAD_VMM_BEFORE             another build of bulkhead-vmm, to see what a change did
#   VHOST_DEVICE_VSOCK              a vhost-device-vsock binary, which gives QEMU a socket device
#   LAB_SECONDS                     how long it may take inside (3000)
source "$(dirname "$0")/lib.sh"
source "$repo/scripts/environment.sh"

cd "$repo"
profile=${PROFILE:-release}
scripts/deps.sh
scripts/guest.sh
environment "$profile"
cargo build --profile "$profile" -p bulkhead-vmm --bins
# It waits and counts: how it is compiled decides nothing.
cargo build -p bulkhead-tests --bin bench-vmm
# Compiled here: it takes minutes inside.
mkdir -p "$target/bench"
export BULKHEAD_BENCH_GUEST=$target/bench/guest
rustc --edition 2024 -O -C target-feature=+crt-static -C strip=symbols -o "$BULKHEAD_BENCH_GUEST" vmm/tests/guest/bench.rs

variables=()
while IFS= read -r name; do variables+=("$name=${!name}"); done < <(compgen -e | grep -E '^(BULKHEAD_|FIRECRACKER$|VHOST_DEVICE_VSOCK$)')
exec "$repo/tests/lab" --timeout "${LAB_SECONDS:-3000}" -- env "${variables[@]}" "$(cargo_dir dev)/bench-vmm" "$@"
