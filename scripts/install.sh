#!/usr/bin/env bash
# Installs what `make build guest` built below PREFIX. DESTDIR is put before every path, for packagers.
source "$(dirname "$0")/lib.sh"

prefix=${PREFIX:-/usr/local}
into=${DESTDIR:-}$prefix
programs=$(cargo_dir "${PROFILE:-release}")

install -d "$into/bin" "$into/lib/bulkhead"
# The daemon looks for the others beside itself.
install -m 0755 -t "$into/bin" "$programs"/bulkhead "$programs"/bulkhead-vmm "$programs"/bulkhead-fs
install -m 0755 "$target/x86_64-unknown-linux-gnu/agent/bulkhead-agent" "$into/lib/bulkhead/"
install -m 0644 "$target/guest/vmlinux" "$target/guest/initramfs" "$into/lib/bulkhead/"

if [ "$prefix" != /usr ]; then
    # The built-in default is /usr/lib/bulkhead.
    install -d "${DESTDIR:-}/etc/bulkhead/config.d"
    cat >"${DESTDIR:-}/etc/bulkhead/config.d/00-install.toml" <<TOML
[guest]
kernel = "$prefix/lib/bulkhead/vmlinux"
initramfs = "$prefix/lib/bulkhead/initramfs"
agent = "$prefix/lib/bulkhead/bulkhead-agent"
TOML
fi
say "install: below $into"
