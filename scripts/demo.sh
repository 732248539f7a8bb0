#!/usr/bin/env bash
# Shows a newcomer what Bulkhead does: a registry, a daemon, a pod in a virtual machine, two containers.
# Everything it starts is its own and is gone afterwards; a Bulkhead that runs already is not touched.
source "$(dirname "$0")/lib.sh"
source "$repo/scripts/environment.sh"

[ "$(id -u)" = 0 ] || die "the demo makes network devices and virtual machines; run it as root"
cd "$repo"
scripts/deps.sh
scripts/guest.sh
scripts/build.sh dev
cargo build --quiet -p bulkhead-tests --bin test-images
environment dev

work=$(mktemp -d /tmp/bulkhead-demo.XXXXXX)
bridge=bhdemo$((RANDOM % 10000))
subnet=10.$((RANDOM % 100 + 100)).$((RANDOM % 250)).0/24
socket=$work/bulkhead.sock
daemon='' registry='' pod=''

# ---- How it talks -----------------------------------------------------------------------------
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
now() { date +%s%N; }

# step COMMAND...: shows the command, runs it with its output indented, and tells how long it took.
step() {
    local started
    printf '%s$ %s%s\n' "$dim" "${*/#$work\//}" "$plain"
    started=$(now)
    "$@" | sed 's/^/    /'
    printf '%s    (%d ms)%s\n' "$dim" $((($(now) - started) / 1000000)) "$plain"
}

crictl() { "$BULKHEAD_CRICTL" --runtime-endpoint "unix://$socket" --image-endpoint "unix://$socket" --timeout 120s "$@"; }

cleanup() {
    local status=$?
    trap '' INT TERM
    set +e
    if [ "$status" -ne 0 ] && [ -s "$work/daemon.log" ]; then
        say "demo: failed; the end of the daemon's log:"
        tail -n 25 "$work/daemon.log" >&2
    fi
    if [ -n "$pod" ]; then crictl stopp "$pod" && crictl rmp "$pod"; fi >/dev/null 2>&1
    for pid in $daemon $registry; do kill "$pid" && wait "$pid"; done 2>/dev/null
    ip link delete "$bridge" 2>/dev/null
    rm -rf --one-file-system "$work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# await WHAT SECONDS COMMAND...: until COMMAND succeeds.
await() {
    local what=$1 deadline=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || die "$what did not become ready"
        sleep 0.1
    done
}

# ---- A registry with two images ---------------------------------------------------------------
title "A registry of our own, filled with images built on the spot"
mkdir -p "$work"/{registry,root,run,cni,logs}
cat >"$work/registry.yml" <<YAML
version: 0.1
storage: { filesystem: { rootdirectory: $work/registry } }
http: { addr: "127.0.0.1:0" }
YAML
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry=$!
address() { sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' "$work/registry.log" | grep .; }
await "the registry" 20 address
images=$(address)
step "$(cargo_dir dev)/test-images" push "$images"

# ---- The daemon -------------------------------------------------------------------------------
title "The daemon, with a network of our own"
cat >"$work/cni/10-demo.conflist" <<JSON
{
  "cniVersion": "1.0.0",
  "name": "bulkhead-demo",
  "plugins": [{
    "type": "bridge", "bridge": "$bridge", "isGateway": true,
    "ipam": { "type": "host-local", "dataDir": "$work/ipam", "ranges": [[{ "subnet": "$subnet" }]], "routes": [{ "dst": "0.0.0.0/0" }] }
  }]
}
JSON
cat >"$work/config.toml" <<TOML
[daemon]
root = "$work/root"
run = "$work/run"
socket = "$socket"

[guest]
kernel = "$BULKHEAD_KERNEL"
initramfs = "$BULKHEAD_INITRAMFS"

[image]
root = "$work/root/images"

[network]
conf_dir = "$work/cni"
TOML
"$BULKHEAD_BIN" serve --config "$work/config.toml" >"$work/daemon.log" 2>&1 &
daemon=$!
await "the daemon" 30 test -S "$socket"
echo "    bulkhead serve --config config.toml, process $daemon"

# ---- Pods -------------------------------------------------------------------------------------
with_crictl() {
    title "A pod in a virtual machine, driven by crictl as a kubelet would drive it"
    step crictl pull "$images/httpd:1"
    step crictl pull "$images/busybox:1"
    cat >"$work/pod.json" <<JSON
{ "metadata": { "name": "demo", "namespace": "default", "uid": "demo-1", "attempt": 0 }, "hostname": "demo",
  "log_directory": "$work/logs", "linux": {} }
JSON
    cat >"$work/web.json" <<JSON
{ "metadata": { "name": "web" }, "image": { "image": "$images/httpd:1" }, "log_path": "web.log", "linux": {} }
JSON
    cat >"$work/job.json" <<JSON
{ "metadata": { "name": "job" }, "image": { "image": "$images/busybox:1" }, "log_path": "job.log", "linux": {},
  "command": ["sh", "-c", "echo computing in \$(hostname); sleep 1; echo done; exit 3"] }
JSON
    step crictl runp "$work/pod.json" | tee "$work/pod.out"
    pod=$(sed -n 's/^ *\([0-9a-f]\{12,\}\)$/\1/p' "$work/pod.out")
    [ -n "$pod" ] || die "no pod was made"
    web=$(crictl create "$pod" "$work/web.json" "$work/pod.json")
    job=$(crictl create "$pod" "$work/job.json" "$work/pod.json")
    step crictl start "$web"
    step crictl start "$job"
    step crictl pods
    step crictl ps --all

    title "Two kernels, side by side"
    printf '    host  %s\n    pod   %s\n' "$(uname -sr)" "$(crictl exec --sync "$web" uname -sr)"

    title "The pod answers from its own address"
    ip=$(crictl inspectp --output go-template --template '{{.status.network.ip}}' "$pod")
    await "the web server in the pod" 20 curl -sf --max-time 2 "http://$ip/"
    step curl -s "http://$ip/"

    title "Logs and exit code of the job"
    finished() { [ "$(crictl inspect --output go-template --template '{{.status.state}}' "$job")" = CONTAINER_EXITED ]; }
    await "the job" 30 finished
    step crictl logs "$job"
    echo "    exit code $(crictl inspect --output go-template --template '{{.status.exitCode}}' "$job")"

    title "And away"
    step crictl stopp "$pod"
    step crictl rmp "$pod"
    pod=''
}

if [ -n "${BULKHEAD_CRICTL:-}" ]; then
    with_crictl
else
    title "Without crictl (no Go toolchain to build it), only 'bulkhead run' is shown"
fi

title "The same in one line"
step "$BULKHEAD_BIN" run --socket "$socket" "$images/busybox:1" -- uname -a
title "Try it on your own daemon:  bulkhead run IMAGE -- COMMAND"
