#!/usr/bin/env bash
# Fuzz targets in turn: scripts/fuzz.sh SECONDS [TARGET...], each for SECONDS; without names all of them. One line each:
# inputs, coverage, result. What is found is kept in fuzz/artifacts; the corpus grows in fuzz/corpus, and neither is
# committed. LEDGER=1 notes each run in docs/fuzz-ledger.md. SANITIZER=address looks for errors of memory too, which makes it
# three times slower. Needs a nightly compiler and cargo-fuzz (cargo install cargo-fuzz --locked).
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:?usage: scripts/fuzz.sh SECONDS [TARGET...]}
shift
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
  for file in fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi
sanitizer=${SANITIZER:-none}
# Without a sanitizer's own memory, what a decoder may take for inputs of a few kilobytes.
memory_mb=${MEMORY_MB:-$([ "$sanitizer" = none ] && echo 512 || echo 2048)}
input_seconds=${INPUT_SECONDS:-10}
input_bytes=${INPUT_BYTES:-4096}
build=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
triple=$(rustc +nightly -vV | sed -n 's/^host: //p')
commit=$(git rev-parse --short=12 HEAD)
if [ -n "$(git status --porcelain -- crates fuzz/fuzz_targets)" ]; then commit="$commit, changed"; fi

cargo +nightly fuzz build --sanitizer "$sanitizer" --target-dir "$build"

log=$(mktemp -t tailwater-fuzz.XXXXXX)
trap 'rm -f "$log"' EXIT
failed=0
for target in "${targets[@]}"; do
  mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
  inputs=("fuzz/corpus/$target" "fuzz/seeds/$target")
  if [ -d "fuzz/regressions/$target" ]; then inputs+=("fuzz/regressions/$target"); fi
  begun=$SECONDS
  code=0
  "$build/$triple/release/$target" "${inputs[@]}" -max_total_time="$seconds" -timeout="$input_seconds" \
    -rss_limit_mb="$memory_mb" -max_len="$input_bytes" -artifact_prefix="fuzz/artifacts/$target/" \
    -print_final_stats=1 >"$log" 2>&1 || code=$?
  took=$((SECONDS - begun))
  execs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
  peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log" | tail -1)
  # The last word on coverage and corpus: edges, features, inputs.
  covered=$(grep -oE 'cov: [0-9]+ ft: [0-9]+ corp: [0-9]+' "$log" | tail -1 || true)
  if [ "$code" = 0 ]; then
    result=ok
  else
    failed=1
    result=$(grep -oE '(crash|timeout|oom|leak|slow-unit)-[0-9a-f]+' "$log" | tail -1 || true)
    result="FOUND ${result:-exit code $code}"
    grep -E 'panicked at|ERROR: libFuzzer|SUMMARY' -A 3 "$log" | head -20 >&2 || true
  fi
  printf '%-14s %6ss %12s inputs  %-34s peak %s MB  %s\n' "$target" "$took" "${execs:--}" "${covered:--}" "${peak:--}" "$result"
  if [ "${LEDGER:-}" = 1 ]; then
    echo "| $(date -u +%Y-%m-%d) | $commit | $target | $took | ${execs:--} | ${covered:--} | ${peak:--} | $result |" >>docs/fuzz-ledger.md
  fi
done
exit "$failed"
