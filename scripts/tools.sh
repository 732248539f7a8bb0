#!/usr/bin/env bash
# Prints the directory that holds crictl, critest and what critest's images are made of (busybox, nonewprivs), or nothing,
# with the reason on standard error. They come from the cache, else are built with Go, a C compiler and a Debian package.
source "$(dirname "$0")/lib.sh"

module=sigs.k8s.io/cri-tools
version=v1.36.0
# Part of the cache key: raise it when the commands below make something else of the same version.
recipe=2
# The one image that a spec names by digest; ours has another one.
digest=$(sed -n 's/^pub const DIGEST: &str = "\(sha256:[0-9a-f]*\)";$/\1/p' "$repo/tests/src/images/critest.rs")
[ -n "$digest" ] || die "tools: tests/src/images/critest.rs names no digest"

key=$(printf '%s\n' "$module" "$version" "$recipe" "$digest" | sha256sum | cut -c1-16)
tools=$cache/tools-$key
if [ -d "$tools" ]; then
    echo "$tools"
    exit 0
fi
if ! command -v go >/dev/null; then
    say "tools: there is no Go to build crictl and critest; what needs them is skipped"
    exit 0
fi

mkdir -p "$cache"
exec 9>"$tools.lock"
if ! flock --nonblock 9; then
    say "tools: another process is building crictl; waiting for that one"
    flock 9
fi
if [ ! -d "$tools" ]; then
    work=$tools.tmp
    remove() { chmod -R u+w "$work" 2>/dev/null || true; rm -rf "$work"; }
    trap remove EXIT
    remove
    mkdir -p "$work/module" "$work/out"

    say "tools: building crictl and critest $version"
    started=$SECONDS
    cd "$work/module"
    export GOFLAGS=-mod=mod GOWORK=off CGO_ENABLED=0
    quietly "tools: preparing" go mod init bulkhead.invalid/tools
    quietly "tools: downloading $module" go mod download "$module@$version" ||
        { say "tools: $module cannot be downloaded; what needs crictl is skipped"; exit 0; }
    # Built as the main module, so that the versions its authors tested are used.
    cp -r "$(go mod download -json "$module@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')" "$work/source"
    chmod -R u+w "$work/source"
    cd "$work/source"
    stamp="-s -w -X $module/pkg/version.Version=$version"
    quietly "tools: building crictl" go build -trimpath -ldflags "$stamp" -o "$work/out/crictl" ./cmd/crictl ||
        { say "tools: crictl cannot be built; what needs it is skipped"; exit 0; }
    sed -i "s|test-image-digest@sha256:[0-9a-f]*|test-image-digest@$digest|" pkg/validate/consts.go
    grep -q "$digest" pkg/validate/consts.go || die "tools: critest names no image by digest any more"
    quietly "tools: building critest" go test -c -trimpath -ldflags "$stamp" -o "$work/out/critest" ./cmd/critest ||
        { say "tools: critest cannot be built; what needs it is skipped"; exit 0; }
    # Its shell looks applets up in PATH. It cannot be installed beside busybox-static, which the other suites use.
    cd "$work"
    quietly "tools: fetching busybox" apt-get -o APT::Sandbox::User=root download busybox &&
        dpkg-deb -x busybox_*.deb unpacked && cp unpacked/bin/busybox out/busybox ||
        say "tools: the package busybox cannot be had; critest is skipped"
    quietly "tools: compiling nonewprivs" cc -static -Os -s -o out/nonewprivs "$repo/tests/critest/nonewprivs.c" ||
        say "tools: nonewprivs cannot be compiled; critest is skipped"
    mv "$work/out" "$tools"
    say "tools: built in $(spoken $((SECONDS - started)))"
fi
echo "$tools"
