#!/usr/bin/env bash
# Instructions of one round of each core (crates/micro): no more than a tenth above what scripts/instructions.txt says, and
# for the watchers of an event among 100,000 disjoint ones at most twice those among 10. Needs valgrind. After an
# improvement, UPDATE=1 writes the file anew.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v valgrind >/dev/null; then
  echo 'LEFT OUT: counting instructions (valgrind is not installed)'
  exit 0
fi
cargo build -q --release -p tailwater-micro
binary=${CARGO_TARGET_DIR:-target}/release/tailwater-micro
rounds=1000
count() {
  local log
  log=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='*tailwater_micro::counted*' "$binary" "$1" "$rounds" 2>&1)
  sed -n 's/.*Collected : \([0-9]*\).*/\1/p' <<<"$log"
}
declare -A counted
failed=0
for name in $("$binary"); do
  counted[$name]=$(($(count "$name") / rounds))
  before=$(sed -n "s/^$name //p" scripts/instructions.txt)
  echo "$name: ${counted[$name]} instructions, $before in scripts/instructions.txt"
  if [ "${counted[$name]}" -eq 0 ]; then
    echo "$name: nothing was counted" >&2
    failed=1
  elif [ -z "${UPDATE:-}" ] && [ "${counted[$name]}" -gt $((before * 110 / 100)) ]; then
    echo "$name takes more instructions than a tenth above what it did" >&2
    failed=1
  fi
done
if [ "${counted[match-100000]}" -gt $((2 * counted[match-10])) ]; then
  echo 'matching grows with the number of watchers' >&2
  failed=1
fi
if [ -n "${UPDATE:-}" ]; then
  for name in $("$binary"); do echo "$name ${counted[$name]}"; done >scripts/instructions.txt
fi
exit $failed
