#!/usr/bin/env bash
# Shows what Bulkhead does, from nothing to a pod that answers, and cleans up after itself.
#   PROFILE    cargo profile of the programs (default release)
#   KEEP=1     before cleaning up, wait for Enter, to look around
source "$(dirname "$0")/lib.sh"
source "$repo/scripts/environment.sh"

cd "$repo"
[ "$(id -u)" = 0 ] || die "the demo makes network namespaces and devices; run it as root: sudo make demo"
profile=${PROFILE:-release}

title() { printf '\n%s\n' "$*"; }
fact() { printf '  %-26s %s\n' "$1" "$2"; }

# step TEXT COMMAND...: runs COMMAND with its output in $output, and prints how long it took.
step() {
    local text=$1 from=${EPOCHREALTIME/[^0-9]/} status=0
    shift
    printf '  %-58s' "$text"
    "$@" >"$output" 2>"$errors" || status=$?
    local took=$((${EPOCHREALTIME/[^0-9]/} - from))
    if [ "$status" -ne 0 ]; then
        printf ' failed\n'
        cat "$output" "$errors" >&2
        [ ! -f "$dir/daemon.log" ] || { say "the daemon's last words:"; tail -n 15 "$dir/daemon.log" >&2; }
        die "\`$*\` ended with status $status"
    fi
    printf ' %4d.%02d s\n' $((took / 1000000)) $((took / 10000 % 100))
}

# wait_for WHAT SECONDS COMMAND...: until COMMAND succeeds.
wait_for() {
    local what=$1 until=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || { echo "waited in vain for $what"; return 1; }
        sleep 0.05
    done
}

title "Preparing (the first time takes some minutes, mostly for the guest's kernel)"
scripts/deps.sh
scripts/build.sh "$profile"
scripts/guest.sh
cargo build --profile "$profile" -p bulkhead-tests --bin test-images --bin leftovers
environment "$profile"
tests=$(cargo_dir "$profile")

dir=$(dirname "$(mktemp -u)")/bulkhead-demo
exec 8>"$dir.lock"
flock --nonblock 8 || die "another demo is running ($dir.lock is locked)"
"$tests/leftovers" "$dir"
mkdir -p "$dir"/{root,run,logs,cni,registry}
output=$dir/output errors=$dir/errors
daemon='' registry=''

# A signal may arrive while a step's output goes to a file.
exec 7>&2
clean_up() {
    local status=$?
    exec >&7 2>&1
    trap '' INT TERM
    trap - EXIT
    for process in $daemon $registry; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    if ! "$tests/leftovers" "$dir"; then
        say "demo: the above could not be removed; the next \`make demo\` tries again"
    elif [ "$status" -ne 0 ]; then
        printf '\ndemo: stopped; everything it made is removed\n'
    fi
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start_registry() {
    cat >"$dir/registry/config.yml" <<EOF
version: 0.1
log: {level: info, formatter: text}
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: '127.0.0.1:0'}
EOF
    OTEL_TRACES_EXPORTER=none docker-registry serve "$dir/registry/config.yml" >"$dir/registry.log" 2>&1 7>&- 8>&- &
    registry=$!
    wait_for "the registry to listen" 20 grep -q 'listening on 127' "$dir/registry.log"
    address=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' "$dir/registry.log" | head -n 1)
}

# A /24 that no route of this host touches.
free_subnet() {
    local routes number
    routes=$(ip -4 route show table all)
    for number in $(seq 0 255); do
        case $routes in *"10.213.$number."*) ;; *) echo "10.213.$number"; return ;; esac
    done
    die "no free subnet in 10.213.0.0/16"
}

write_configuration() {
    local subnet
    subnet=$(free_subnet)
    echo bulkhead-demo >"$dir/bridge"
    echo /bulkhead-demo >"$dir/cgroup"
    cat >"$dir/cni/10-demo.conflist" <<EOF
{ "cniVersion": "1.0.0", "name": "bulkhead-demo", "plugins": [
  { "type": "bridge", "bridge": "bulkhead-demo", "isGateway": true,
    "ipam": { "type": "host-local", "dataDir": "$dir/addresses",
              "ranges": [[{ "subnet": "$subnet.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] } } ] }
EOF
    cat >"$dir/config.toml" <<EOF
[daemon]
root = "$dir/root"
run = "$dir/run"
socket = "$dir/run/bulkhead.sock"

[guest]
kernel = "$BULKHEAD_KERNEL"
initramfs = "$BULKHEAD_INITRAMFS"

[runtimes.qemu]
sandboxer = "qemu"

[network]
conf_dir = "$dir/cni"
bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]

[image]
root = "$dir/root/images"
EOF
    echo "runtime-endpoint: unix://$dir/run/bulkhead.sock" >"$dir/crictl.yaml"
    cat >"$dir/pod.json" <<EOF
{ "metadata": { "name": "demo", "namespace": "default", "uid": "demo-1" }, "hostname": "demo",
  "log_directory": "$dir/logs", "linux": { "cgroup_parent": "/bulkhead-demo" } }
EOF
    cat >"$dir/web.json" <<EOF
{ "metadata": { "name": "web" }, "image": { "image": "$address/httpd:1" }, "log_path": "web.log", "linux": {} }
EOF
    cat >"$dir/hello.json" <<EOF
{ "metadata": { "name": "hello" }, "image": { "image": "$address/busybox:1" }, "log_path": "hello.log", "linux": {},
  "command": ["sh", "-c", "echo \"I am \$(hostname), process \$\$ on Linux \$(uname -r)\"; echo 'this went to stderr' >&2; exit 42"] }
EOF
}

start_daemon() {
    "$BULKHEAD_BIN" serve --config "$dir/config.toml" >"$dir/daemon.log" 2>&1 7>&- 8>&- &
    daemon=$!
    wait_for "the daemon's socket" 60 answers
}

# Whether the daemon answers; not when it has ended, which is told at once.
answers() {
    if [ -n "${BULKHEAD_CRICTL:-}" ]; then crictl version; else [ -S "$dir/run/bulkhead.sock" ]; fi
}

crictl() { "$BULKHEAD_CRICTL" --config "$dir/crictl.yaml" "$@"; }
bulkhead_run() { "$BULKHEAD_BIN" run --config "$dir/config.toml" "$@"; }
fetch() { curl --silent --show-error --fail --max-time 2 "http://$ip/"; }
# field inspect|inspectp ID PATH: one field of a container or pod.
field() { crictl "$1" --output go-template --template "{{.status.$3}}" "$2"; }
exited() { [ "$(field inspect "$hello" state)" = CONTAINER_EXITED ]; }

by_crictl() {
    title "A pod, by crictl"
    step "crictl pull httpd:1" crictl pull "$address/httpd:1"
    step "crictl pull busybox:1" crictl pull "$address/busybox:1"
    step "crictl runp pod.json           the pod's VM boots" crictl runp "$dir/pod.json"
    pod=$(cat "$output")
    ip=$(field inspectp "$pod" network.ip)
    step "crictl create web.json" crictl create "$pod" "$dir/web.json" "$dir/pod.json"
    web=$(cat "$output")
    step "crictl start web" crictl start "$web"
    step "curl http://$ip/" wait_for "the pod's page" 20 fetch
    page=$(fetch)
    step "crictl create hello.json" crictl create "$pod" "$dir/hello.json" "$dir/pod.json"
    hello=$(cat "$output")
    step "crictl start hello" crictl start "$hello"
    step "it ends" wait_for "the end of container hello" 30 exited
    kernel=$(crictl exec --sync "$web" uname -r)
    logs=$(crictl logs "$hello" 2>&1)
    code=$(field inspect "$hello" exitCode)
    step "crictl stopp" crictl stopp "$pod"
    step "crictl rmp" crictl rmp "$pod"

    title "What happened"
    fact "kernel of this host" "$(uname -r)"
    fact "kernel of the pod" "$kernel"
    fact "http://$ip/" "$page"
    while IFS= read -r line; do fact "log of hello" "$line"; done <<<"$logs"
    fact "exit code of hello" "$code"
}

by_run_alone() {
    title "A pod, by bulkhead run"
    echo "  (crictl is not here and there is no Go to build it, so this shows bulkhead run alone)"
    step "bulkhead run busybox:1 -- uname -r" bulkhead_run "$address/busybox:1" -- uname -r
    local kernel code=0
    kernel=$(cat "$output")
    title "What happened"
    fact "kernel of this host" "$(uname -r)"
    fact "kernel of the pod" "$kernel"
    bulkhead_run "$address/busybox:1" -- sh -c 'echo to stdout; exit 42' >"$output" 2>"$errors" || code=$?
    fact "output" "$(cat "$output")"
    fact "exit code" "$code"
}

title "A registry and a daemon of its own"
step "start docker-registry on 127.0.0.1" start_registry
step "build two images on the spot and push them" "$tests/test-images" push "$address"
write_configuration
step "bulkhead serve" start_daemon
if [ -n "${BULKHEAD_CRICTL:-}" ]; then by_crictl; else by_run_alone; fi

title "The same in one line"
step "bulkhead run busybox:1 -- echo hello" bulkhead_run "$address/busybox:1" -- echo hello
fact "it printed" "$(cat "$output")"

if [ -n "${KEEP:-}" ]; then
    title "Still running; try this, and press Enter here to clean up"
    echo "  $BULKHEAD_BIN run --config $dir/config.toml $address/busybox:1 -- sh -c 'uname -a; id'"
    read -r _
fi

title "Everything it made is removed now. With a daemon of your own (\`make install\`, \`bulkhead serve\`), repeat this:"
printf '\n  bulkhead run docker.io/library/busybox -- uname -r\n\n'
