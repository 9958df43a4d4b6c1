#!/usr/bin/env bash
# Runs a real Kubernetes API server on tailwater and then, with the same assertions, on etcd.
#   TAILWATER_BIN  server binary to start
#   ETCD_BIN       a real etcd, to check the tests themselves; without it only tailwater is run
#   SHORT=1        only requests of each kind, a killed fanout and a killed leader, on tailwater
#   OBJECTS=n ROUNDS=n SECONDS_OF_LOAD=n   how much: 2000, 1 and 15; in full 50000, 20 and 120 (FULL=1)
#   OLDER=1        with the older minor of Kubernetes (older.mod) instead of the newest
#   RUN=regexp     only these tests
#   TARGET_DIR     where the compiled tests go (default: target)
# Where Go is missing it says so by a line "LEFT OUT: …"; with CI=true that is a failure.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
if ! command -v go >/dev/null; then
    echo 'LEFT OUT: Kubernetes (Go is not installed)'
    [[ ${CI:-} != true ]]
    exit
fi
tailwater=$(realpath "${TAILWATER_BIN:?set TAILWATER_BIN}")
etcd=${ETCD_BIN:+$(realpath "$ETCD_BIN")}
mkdir -p "${TARGET_DIR:-$root/target}/kubernetes"
build=$(cd "${TARGET_DIR:-$root/target}/kubernetes" && pwd)
if [[ ${FULL:-} == 1 ]]; then
    export OBJECTS=${OBJECTS:-50000} ROUNDS=${ROUNDS:-20} SECONDS_OF_LOAD=${SECONDS_OF_LOAD:-120}
fi
timeout=$((10 + 2 * ${ROUNDS:-1} + ${OBJECTS:-2000} / 500))m

mod=go.mod
tags=
if [[ ${OLDER:-} == 1 ]]; then
    mod=older.mod
    tags=older
fi
cd "$here"
printf 'Kubernetes: the API server of %s\n' "$(grep -oE 'k8s.io/apiserver v[0-9.]+' "$mod")"
started=$SECONDS
go test -c -modfile="$mod" -tags="$tags" -o "$build/kubernetes.test" .
echo "compiled in $((SECONDS - started)) s"

stores=(tailwater)
if [[ -n $etcd && ${SHORT:-} != 1 ]]; then
    stores+=(etcd)
fi
failed=0
summary=()
for store in "${stores[@]}"; do
    started=$SECONDS
    echo "== Kubernetes on $store"
    if STORE=$store TAILWATER_BIN=$tailwater ETCD_BIN=$etcd "$build/kubernetes.test" \
        -test.v -test.count=1 -test.failfast -test.timeout="$timeout" ${RUN:+-test.run="$RUN"}; then
        summary+=("passed: Kubernetes on $store ($((SECONDS - started)) s)")
    else
        summary+=("FAILED: Kubernetes on $store")
        failed=1
    fi
done
printf '\n'
printf '%s\n' "${summary[@]}"
exit "$failed"
