#!/usr/bin/env bash
# Feeds the parsers of hostile input with far more input than the unit tests do: the property tests with random input,
# then the fuzz targets below */fuzz with input that follows the coverage.
#   fuzz.sh [TARGET...]      all targets, or these, without the property tests
#   fuzz.sh --short          all targets for about a minute together, without the property tests
#   FUZZ_CASES      cases of each property (20000)
#   FUZZ_SECONDS    time of each target (60)
# What makes a target fail is left in target/fuzz/artifacts; the corpora grow in target/fuzz/corpus, from */fuzz/seeds.
source "$(dirname "$0")/lib.sh"

cd "$repo"
triple=x86_64-unknown-linux-gnu
out=$target/fuzz

properties() {
    local names
    export PROPTEST_CASES=${FUZZ_CASES:-20000}
    # The arguments of a property have the form `NAME in STRATEGY`.
    mapfile -t names < <(find proto vmm agent host -path '*/fuzz' -prune -o -name '*.rs' -exec \
        perl -0777 -ne 'print "$1\n" while /\bfn (\w+)\(\s*(?:mut )?\w+ in /g' {} + | sort -u)
    [ ${#names[@]} -gt 0 ] || die "no property test was found"
    say "fuzz: ${#names[@]} properties, $PROPTEST_CASES cases each"
    cargo test --profile "${PROFILE:-release}" --workspace --exclude bulkhead-tests --no-fail-fast -- "${names[@]}"
}

# All targets of a crate in one build. The flags are unstable; a stable compiler takes them with RUSTC_BOOTSTRAP.
build() {
    local flags=(
        -Cpasses=sancov-module
        -Cllvm-args=-sanitizer-coverage-level=4
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
        -Cllvm-args=-sanitizer-coverage-pc-table
        -Cllvm-args=-sanitizer-coverage-trace-compares
        -Zsanitizer=address
        --cfg fuzzing
    )
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}" cargo build --quiet --release --bins \
        --manifest-path "$1/Cargo.toml" --target "$triple" --target-dir "$out"
}

# run CRATE TARGET SECONDS
run() {
    local corpus=$out/corpus/$2 artifacts=$out/artifacts/$2/ log=$out/$2.log
    mkdir -p "$corpus" "$artifacts"
    local seeds=()
    [ ! -d "$1/seeds/$2" ] || seeds=("$1/seeds/$2")
    if ! "$out/$triple/release/$2" "$corpus" "${seeds[@]}" -artifact_prefix="$artifacts" -max_total_time="$3" \
        -timeout=20 -rss_limit_mb=2048 -max_len=8192 -detect_leaks=0 -print_final_stats=1 >"$log" 2>&1; then
        grep -v '^#' "$log" | tail -n 60 >&2
        say "fuzz: $2 failed; its input is in $artifacts"
        return 1
    fi
    say "fuzz: $2, $3 s: $(awk '/number_of_executed_units/ { print $2 }' "$log") inputs"
}

short='' only=()
case ${1:-} in
--short) short=1 ;;
'') properties ;;
*) only=("$@") ;;
esac

mapfile -t sources < <(find . -path '*/fuzz/fuzz_targets/*.rs' -not -path './target/*' | sort)
seconds=${FUZZ_SECONDS:-60}
[ -z "$short" ] || seconds=$(((60 + ${#sources[@]} - 1) / ${#sources[@]}))
status=0 built=' '
for source in "${sources[@]}"; do
    crate=${source%/fuzz_targets/*} name=$(basename "$source" .rs)
    [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " = *" $name "* ]] || continue
    if [[ $built != *" $crate "* ]]; then
        quietly "fuzz: building the targets of $crate" build "$crate"
        built+="$crate "
    fi
    run "$crate" "$name" "$seconds" || status=1
done
[ "$built" != ' ' ] || die "no such target: ${only[*]}"
exit "$status"
