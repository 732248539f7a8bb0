#!/usr/bin/env bash
# Format and lints of the whole workspace; tells about both before it fails.
source "$(dirname "$0")/lib.sh"

cd "$repo"
status=0
cargo fmt --all --check || status=1
cargo clippy --workspace --all-targets -- -D warnings || status=1
exit "$status"
