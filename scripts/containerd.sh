#!/usr/bin/env bash
# Prints the directory that holds containerd, its shim and runc, or nothing, with the reason on standard error. Only `make
# bench-cri` needs them. They come from the cache, else containerd is built with Go, and runc is taken from a Debian package.
source "$(dirname "$0")/lib.sh"

module=github.com/containerd/containerd/v2
version=v2.4.2
# Part of the cache key: raise it when the commands below make something else of the same version.
recipe=1

key=$(printf '%s\n' "$module" "$version" "$recipe" | sha256sum | cut -c1-16)
programs=$cache/containerd-$key
if [ -d "$programs" ]; then
    echo "$programs"
    exit 0
fi
if ! command -v go >/dev/null; then
    say "containerd: there is no Go to build it"
    exit 0
fi

mkdir -p "$cache"
exec 9>"$programs.lock"
if ! flock --nonblock 9; then
    say "containerd: another process is building it; waiting for that one"
    flock 9
fi
if [ ! -d "$programs" ]; then
    work=$programs.tmp
    remove() { chmod -R u+w "$work" 2>/dev/null || true; rm -rf "$work"; }
    trap remove EXIT
    remove
    mkdir -p "$work/out"

    say "containerd: building $version"
    started=$SECONDS
    cd "$work"
    export GOFLAGS=-mod=mod GOWORK=off CGO_ENABLED=0
    quietly "containerd: downloading $module" go mod download "$module@$version" ||
        { say "containerd: $module cannot be downloaded"; exit 0; }
    # Built as the main module, so that the versions its authors tested are used.
    cp -r "$(go mod download -json "$module@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')" "$work/source"
    chmod -R u+w "$work/source"
    cd "$work/source"
    stamp="-s -w -X $module/version.Version=$version"
    for program in containerd containerd-shim-runc-v2; do
        quietly "containerd: building $program" \
            go build -trimpath -tags no_btrfs,no_zfs,no_devmapper -ldflags "$stamp" -o "$work/out/$program" "./cmd/$program" ||
            { say "containerd: $program cannot be built"; exit 0; }
    done
    # Unpacked and not installed: nothing of this machine changes.
    cd "$work"
    quietly "containerd: fetching runc" apt-get -o APT::Sandbox::User=root download runc &&
        dpkg-deb -x runc_*.deb unpacked && cp unpacked/usr/sbin/runc out/runc ||
        { say "containerd: the package runc cannot be had"; exit 0; }
    mv "$work/out" "$programs"
    say "containerd: built in $(spoken $((SECONDS - started)))"
fi
echo "$programs"
