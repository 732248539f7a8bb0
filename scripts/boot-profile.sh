#!/usr/bin/env bash
# Shows what the guest kernel's boot consists of, in instructions: one is a nanosecond of the clock of QEMU's emulator then, so
# the figures are the same on every machine, however busy. Prints two tables in Markdown.
#   boot-profile.sh [ARG...]    more for the kernel's command line
#   KERNEL                      another vmlinux than that of scripts/guest.sh
source "$(dirname "$0")/lib.sh"

kernel=${KERNEL:-$target/guest/vmlinux}
[ -e "$kernel" ] || die "there is no kernel at $kernel; make guest builds one"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/root/{bin,dev,proc}
cp "$(command -v busybox)" "$work/root/bin/busybox"
cat >"$work/root/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b dmesg -s 1048576 >/dev/ttyS0
$b reboot -f
INIT
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio --quiet -o -H newc) >"$work/initramfs"

# Frequencies are told as KVM tells them, and without a timer in the processor there is none to measure.
clock='tsc_early_khz=1000000 lpj=4000000 nolapic_timer'
timeout 300 qemu-system-x86_64 -M microvm,acpi=off,rtc=on,pit=on,pic=on -accel tcg -icount shift=0 -cpu max -m 256 \
    -nodefaults -no-user-config -display none -no-reboot -serial "file:$work/log" \
    -kernel "$kernel" -initrd "$work/initramfs" -append "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t \
random.trust_cpu=on tsc=reliable no_timer_check nomodule noreplace-smp $clock initcall_debug log_buf_len=1M $*" ||
    die "the guest did not come to its end: $(tail -n 5 "$work/log")"

tr -d '\r' <"$work/log" >"$work/lines"
grep -q 'Run /init as init process' "$work/lines" || die "the guest did not reach init: $(tail -n 5 "$work/lines")"
# Microseconds since the line before, for every line until init runs.
awk -F'[][]' '{ now = $2 * 1000000; sub(/^[^]]*\] /, ""); printf "%d\t%s\n", now - before, substr($0, 1, 70); before = now }
    /Run \/init as init process/ { exit }' "$work/lines" >"$work/gaps"
sed -n 's/.* initcall \([^+ ]*\).* after \([0-9]*\) usecs$/\2\t\1/p' "$work/lines" >"$work/calls"
# table HEAD FILE: its longest lines.
table() {
    awk -F'\t' -v head="$1" '{ all += $1 } END { printf "| %s | thousands of %d |\n|---|---:|\n", head, all }' "$2"
    sort -rn "$2" | sed -n '1,14p' | awk -F'\t' '{ printf "| `%s` | %d |\n", $2, $1 }'
}
table "what the kernel says after the longest silences" "$work/gaps"
echo
table "initcall" "$work/calls"
