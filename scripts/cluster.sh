#!/usr/bin/env bash
# Starts three members on localhost and says how to use them once they serve; Ctrl-C stops them. Data and logs are in the
# directory given, one folder a member.
set -euo pipefail
binary=$1 data_dir=$2
client() { echo "http://127.0.0.1:$((2379 + 10000 * $1))"; }
peer() { echo "http://127.0.0.1:$((2380 + 10000 * $1))"; }
for port in 12379 12380 22379 22380 32379 32380; do
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    echo "port $port on 127.0.0.1 is taken (another cluster?); stop what listens there and try again." >&2
    exit 1
  fi
done
members=() endpoints=()
for i in 1 2 3; do
  members+=("m$i=$(peer $i)")
  endpoints+=("$(client $i)")
done
all=$(IFS=,; echo "${members[*]}")
mkdir -p "$data_dir"
pids=()
for i in 1 2 3; do
  "$binary" serve --name "m$i" --data-dir "$data_dir/m$i" --initial-cluster "$all" \
    --listen-client-urls "$(client $i)" --advertise-client-urls "$(client $i)" \
    --listen-peer-urls "$(peer $i)" --initial-advertise-peer-urls "$(peer $i)" 2> "$data_dir/m$i.log" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM
for i in 1 2 3; do
  for _ in $(seq 300); do
    grep -q 'ready to serve client requests' "$data_dir/m$i.log" && break
    if ! kill -0 "${pids[$((i - 1))]}" 2>/dev/null; then
      echo "member m$i has stopped; the end of its log:" >&2
      tail -n 3 "$data_dir/m$i.log" >&2
      kill -TERM "${pids[@]}" 2>/dev/null || true
      exit 1
    fi
    sleep 0.1
  done
done
cat <<TEXT

Three members serve the etcd v3 API (data and logs in $data_dir; Ctrl-C stops them). Try, in another terminal:

  export ETCDCTL_ENDPOINTS=$(IFS=,; echo "${endpoints[*]}")
  etcdctl endpoint status --cluster -w table
  etcdctl member list -w table
  etcdctl put greeting hello

TEXT
# A wait also ends when a signal arrives, with a code above 128; the next one waits for the drain and tells how the
# member ended.
failed=0
for pid in "${pids[@]}"; do
  status=0
  wait "$pid" || status=$?
  if [ "$status" -gt 128 ]; then
    status=0
    wait "$pid" || status=$?
  fi
  [ "$status" = 0 ] || failed=$status
done
exit "$failed"
