#!/usr/bin/env bash
# Starts one node on localhost and says how to use it once it serves.
set -euo pipefail
binary=$1 data_dir=$2
for port in 2379 2380; do
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    echo "port $port on 127.0.0.1 is taken (an etcd, or another tailwater?); stop what listens there and try again." >&2
    exit 1
  fi
done
log=$(mktemp -t tailwater-log.XXXXXX)
"$binary" serve --data-dir "$data_dir" 2> >(tee "$log" >&2) &
server=$!
trap 'kill -TERM "$server" 2>/dev/null || true' INT TERM
for _ in $(seq 300); do
  grep -q 'ready to serve client requests' "$log" && break
  kill -0 "$server" 2>/dev/null || break
  sleep 0.1
done
if kill -0 "$server" 2>/dev/null && grep -q 'ready to serve client requests' "$log"; then
  cat <<TEXT

tailwater serves the etcd v3 API on 127.0.0.1:2379 (data in $data_dir; Ctrl-C stops it). Try, in another terminal:

  etcdctl put greeting hello
  etcdctl watch --prefix greet
  curl -s http://127.0.0.1:2379/health

TEXT
fi
# A wait also ends when a signal arrives, with a code above 128; the next one waits for the drain and tells how the
# server ended.
status=0
wait "$server" || status=$?
if [ "$status" -gt 128 ]; then
  status=0
  wait "$server" || status=$?
fi
rm -f "$log"
exit "$status"
