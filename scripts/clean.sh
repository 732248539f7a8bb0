#!/usr/bin/env bash
# Removes what was built in the checkout. The cache stays: it is shared by checkouts and slow to make.
source "$(dirname "$0")/lib.sh"

cd "$repo"
cargo clean
say "clean: the cache is still there: $cache"
