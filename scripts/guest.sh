#!/usr/bin/env bash
# Builds what a pod boots, and leaves it in target/guest: vmlinux and initramfs.
source "$(dirname "$0")/lib.sh"

guest=$target/guest
triple=x86_64-unknown-linux-gnu
cd "$repo"
mkdir -p "$guest"

cargo build --quiet -p bulkhead-guest-image
maker=$(cargo_dir dev)/bulkhead-guest-image
kernel=$("$maker" kernel)
ln -sfn "$kernel" "$guest/vmlinux"

# With --target, the flags reach the agent and its crates, but no build script.
RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" cargo build --profile agent -p bulkhead-agent --bins --target "$triple"
"$maker" initramfs --agent "$target/$triple/agent/bulkhead-agent" --output "$guest/initramfs"
say "guest: $guest"
