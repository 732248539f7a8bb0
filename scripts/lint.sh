#!/usr/bin/env bash
# Format and lints of the whole workspace.
source "$(dirname "$0")/lib.sh"

cd "$repo"
cargo fmt --all --check
cargo clippy --workspace --all-targets -- -D warnings
