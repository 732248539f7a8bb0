#!/usr/bin/env bash
# Builds the host's programs.
#   build.sh [PROFILE]    a cargo profile: dev (default) or release
source "$(dirname "$0")/lib.sh"

profile=${1:-dev}
cd "$repo"
cargo build --profile "$profile" -p bulkhead -p bulkhead-vmm --bins
say "build: $(cargo_dir "$profile")"
