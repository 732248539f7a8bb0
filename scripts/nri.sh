#!/usr/bin/env bash
# Prints the directory that holds NRI plugins for the tests, or nothing, with the reason on standard error.
#   plugin                    tests/nri/plugin.go on the reference's stub
#   logger device-injector    plugins of the reference itself, where its repository can be reached
source "$(dirname "$0")/lib.sh"

module=github.com/containerd/nri
version=v0.12.5
# The plugins are modules of their own that have no versions: a commit of the same repository.
commit=8ec8b285eae3ef5d2dbab8e679aad47f5ac58da9

# What could not be had once is tried again: its absence is not kept.
key=$(cat "$0" "$repo/tests/nri/plugin.go" | sha256sum | cut -c1-16)
plugins=$cache/nri-$key
if [ -x "$plugins/plugin" ] && [ -x "$plugins/logger" ] && [ -x "$plugins/device-injector" ]; then
    echo "$plugins"
    exit 0
fi
if ! command -v go >/dev/null; then
    say "nri: there is no Go to build plugins; what needs them is skipped"
    exit 0
fi

mkdir -p "$cache"
exec 9>"$plugins.lock"
flock 9
work=$plugins.tmp
remove() { chmod -R u+w "$work" 2>/dev/null || true; rm -rf "$work"; }
trap remove EXIT
remove
mkdir -p "$work" "$plugins"
cd "$work"
export GOFLAGS=-mod=mod GOWORK=off CGO_ENABLED=0

if [ ! -x "$plugins/plugin" ]; then
    cp "$repo/tests/nri/plugin.go" .
    quietly "nri: preparing" go mod init bulkhead.invalid/nri
    quietly "nri: downloading $module" go get "$module@$version" ||
        { say "nri: $module cannot be downloaded; what needs NRI plugins is skipped"; rmdir "$plugins"; exit 0; }
    quietly "nri: building the tests' plugin" go build -trimpath -o plugin . ||
        die "nri: tests/nri/plugin.go does not compile with $module $version"
    mv plugin "$plugins/plugin"
fi
for name in logger device-injector; do
    [ -x "$plugins/$name" ] && continue
    rm -f go.mod go.sum plugin.go
    go mod init bulkhead.invalid/nri 2>/dev/null
    if GONOPROXY=$module/plugins timeout 60 go get "$module/plugins/$name@$commit" >/dev/null 2>&1 &&
        go get "$module@$version" >/dev/null 2>&1 &&
        quietly "nri: building $name" go build -trimpath -o "$name" "$module/plugins/$name"; then
        mv "$name" "$plugins/$name"
    else
        say "nri: the plugin $name cannot be had from $module; its cases are skipped"
    fi
done
echo "$plugins"
