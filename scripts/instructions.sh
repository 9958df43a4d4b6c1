#!/usr/bin/env bash
# Instructions that it takes to find the watchers of one event, among 10 and among 100,000 disjoint ones: the second must
# be within twice the first. Needs valgrind.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v valgrind >/dev/null; then
  echo 'LEFT OUT: counting instructions (valgrind is not installed)'
  exit 0
fi
binary=$(cargo test --release -p tailwater-fanout --lib --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))/\1/p')
count() {
  local log
  log=$(MATCH_WATCHERS=$1 valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='*registry::Registry::find' \
    "$binary" --exact registry::tests::matching_a_thousand_events_among_disjoint_watchers 2>&1)
  sed -n 's/.*Collected : \([0-9]*\).*/\1/p' <<<"$log"
}
few=$(count 10) many=$(count 100000)
echo "instructions per matched event: $((few / 1000)) among 10 watchers, $((many / 1000)) among 100,000"
[ "$few" -gt 0 ] && [ "$many" -le $((2 * few)) ] || { echo 'matching grows with the number of watchers' >&2; exit 1; }
