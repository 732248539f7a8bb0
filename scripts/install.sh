#!/usr/bin/env bash
# Installs what `make build guest` built. DESTDIR is put before every path, for packagers.
source "$(dirname "$0")/lib.sh"

prefix=${DESTDIR:-}${PREFIX:-/usr/local}
programs=$(cargo_dir "${PROFILE:-release}")
install -d "$prefix/bin" "$prefix/libexec/bulkhead" "$prefix/share/bulkhead"
install -m 0755 "$programs/bulkhead" "$prefix/bin/"
install -m 0755 "$programs/bulkhead-vmm" "$prefix/libexec/bulkhead/"
install -m 0755 "$target/x86_64-unknown-linux-gnu/agent/bulkhead-agent" "$prefix/libexec/bulkhead/"
install -m 0644 "$target/guest/vmlinux" "$target/guest/initramfs" "$prefix/share/bulkhead/"
say "install: below $prefix"
