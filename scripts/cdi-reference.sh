#!/usr/bin/env bash
# Prints the path of a program around the reference implementation of the Container Device Interface (tests/cdi/main.go), or
# nothing, with the reason on standard error. It comes from the cache, else is built with Go.
source "$(dirname "$0")/lib.sh"

module=tags.cncf.io/container-device-interface
version=v1.1.2
source=$repo/tests/cdi/main.go

key=$(printf '%s\n' "$module" "$version" | cat - "$source" | sha256sum | cut -c1-16)
program=$cache/cdi-reference-$key
if [ -x "$program" ]; then
    echo "$program"
    exit 0
fi
if ! command -v go >/dev/null; then
    say "cdi-reference: there is no Go to build it; what needs it is skipped"
    exit 0
fi

mkdir -p "$cache"
exec 9>"$program.lock"
flock 9
if [ ! -x "$program" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cp "$source" "$work/main.go"
    cd "$work"
    export GOFLAGS=-mod=mod GOWORK=off CGO_ENABLED=0
    quietly "cdi-reference: preparing" go mod init bulkhead.invalid/cdi-reference
    quietly "cdi-reference: downloading $module" go get "$module@$version" ||
        { say "cdi-reference: $module cannot be downloaded; what needs it is skipped"; exit 0; }
    quietly "cdi-reference: building" go build -trimpath -ldflags '-s -w' -o "$work/out" . ||
        { say "cdi-reference: it cannot be built; what needs it is skipped"; exit 0; }
    mv "$work/out" "$program"
fi
echo "$program"
