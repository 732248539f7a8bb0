#!/usr/bin/env bash
# Prints the directory that holds crictl and critest, or nothing, with the reason on standard error.
# They come from PATH, else from the cache, else are built with Go.
source "$(dirname "$0")/lib.sh"

module=sigs.k8s.io/cri-tools
version=v1.36.0
# Part of the cache key: raise it when the commands below make something else of the same version.
recipe=1

if crictl=$(command -v crictl) && critest=$(command -v critest) && [ "${crictl%/*}" = "${critest%/*}" ]; then
    echo "${crictl%/*}"
    exit 0
fi

key=$(printf '%s\n' "$module" "$version" "$recipe" | sha256sum | cut -c1-16)
tools=$cache/tools-$key
if [ -d "$tools" ]; then
    echo "$tools"
    exit 0
fi
if ! command -v go >/dev/null; then
    say "tools: crictl and critest are not in PATH and there is no Go to build them; what needs them is skipped"
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
    quietly "tools: building critest" go test -c -trimpath -ldflags "$stamp" -o "$work/out/critest" ./cmd/critest ||
        { say "tools: critest cannot be built; what needs it is skipped"; exit 0; }
    mv "$work/out" "$tools"
    say "tools: built in $(spoken $((SECONDS - started)))"
fi
echo "$tools"
