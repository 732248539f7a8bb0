#!/usr/bin/env bash
# Installs the Debian packages that are missing. Touches nothing when all are there.
#   deps.sh [--list]    --list prints what would be installed, and installs nothing
source "$(dirname "$0")/lib.sh"

# package                     why
packages() {
    cat <<'LIST'
build-essential               the guest kernel, and C parts of crates
flex                          the guest kernel's configuration parser
bison                         the guest kernel's configuration parser
bc                            the guest kernel's time constants
libelf-dev                    the guest kernel's objtool
libssl-dev                    the guest kernel's host programs
xz-utils                      unpacks the guest kernel's source
linux-source-6.12             the guest kernel's source
pkg-config                    finds libraries to link
libcap-ng-dev                 the per-pod file server drops capabilities with it
libseccomp-dev                the per-pod file server confines itself with it
qemu-system-x86               carries pods of the sandboxer qemu
nftables                      host ports
iproute2                      tests build network namespaces with it
iptables                      the CNI plugins bridge and portmap call it
containernetworking-plugins   CNI plugins: bridge, host-local, portmap, loopback
e2fsprogs                     makes the template of the scratch drive
erofs-utils                   tests: fsck.erofs judges our EROFS images
docker-registry               tests and demo: a real registry on 127.0.0.1
skopeo                        tests and benchmark: fills the registry
umoci                         tests and benchmark: reference for unpacked images
busybox-static                tests and demo: contents of images built on the spot
curl                          tests and demo: HTTP requests to pods
cpio                          tests: reads the initramfs; the lab
systemd                       the lab: its cgroup driver
kmod                          the lab: module dependencies of its kernel
LIST
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || {
    say "deps: this is not a Debian-like system; make sure that the programs of these packages are there:"
    packages >&2
    exit 0
}

missing=()
# With the source named by hand, the package of the source is not needed.
while read -r package _; do
    [ "$package" = linux-source-6.12 ] && [ -n "${KERNEL_SOURCE:-}" ] && continue
    installed "$package" || missing+=("$package")
done < <(packages)

if [ ${#missing[@]} -eq 0 ]; then
    say "deps: nothing is missing"
    exit 0
fi
if [ "${1:-}" = --list ]; then
    packages | grep -F -w -f <(printf '%s\n' "${missing[@]}")
    exit 0
fi
[ "$(id -u)" = 0 ] || die "these packages are missing, and installing them needs root: apt-get install ${missing[*]}"

export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3)
# An installation that was interrupted half-way must be finished first.
quietly "deps: finishing an earlier installation" dpkg --configure -a
quietly "deps: reading the package lists" "${apt[@]}" update ||
    say "deps: the package lists could not be refreshed; going on with the ones that are here"

unknown=()
for package in "${missing[@]}"; do
    [ -n "$(apt-cache madison "$package" 2>/dev/null)" ] || unknown+=("$package")
done
case " ${unknown[*]-} " in
*" linux-source-6.12 "*) die "this distribution has no package linux-source-6.12; set KERNEL_SOURCE to a tarball of Linux 6.12 or later" ;;
"  ") ;;
*) die "this distribution has no package ${unknown[*]}; install what they hold by hand" ;;
esac

say "deps: installing ${missing[*]}"
started=$SECONDS
quietly "deps: installing" "${apt[@]}" install -y --no-install-recommends "${missing[@]}"
# The package starts a registry of its own on port 5000, which nobody asked for.
case " ${missing[*]} " in
*" docker-registry "*)
    if [ -d /run/systemd/system ]; then systemctl disable --quiet --now docker-registry || true; fi
    ;;
esac
say "deps: ${#missing[@]} packages installed in $(spoken $((SECONDS - started)))"
