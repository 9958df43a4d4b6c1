#!/usr/bin/env bash
# Runs the client suites (Go, etcdctl, Python, Node), each against a fresh server, and Prometheus on what members expose.
#   TAILWATER_BIN        server binary to start, or
#   TAILWATER_ENDPOINTS  address of a running server with an empty store (then all suites share it)
#   ETCDCTL              etcdctl 3.6 (default: from PATH)
#   REFERENCE=1 ETCD=…   start a real etcd instead, to check the suites themselves
#   TARGET_DIR           where the virtual environment and node_modules go (default: target)
# A suite whose tool is missing is named by a line "LEFT OUT: …"; with CI=true that is a failure.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
build=${TARGET_DIR:-$root/target}/clients
mkdir -p "$build"
build=$(cd "$build" && pwd)
work=$(mktemp -d)
server=
summary=()
failed=0
progress_interval=1s

stop_server() {
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        server=
    fi
}
trap 'stop_server; rm -rf "$work"' EXIT

# A port below those that the kernel hands out by itself, where nothing listens.
free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)) && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        :
    done
    echo "$port"
}

# start_server NAME: sets endpoint to a fresh server's address.
start_server() {
    if [[ -n ${TAILWATER_ENDPOINTS:-} && ${REFERENCE:-} != 1 ]]; then
        endpoint=$TAILWATER_ENDPOINTS
        return
    fi
    local client peer command
    client=$(free_port)
    peer=$(free_port)
    while [[ $peer == "$client" ]]; do
        peer=$(free_port)
    done
    endpoint=127.0.0.1:$client
    if [[ ${REFERENCE:-} == 1 ]]; then
        command=("${ETCD:-etcd}")
    else
        command=("${TAILWATER_BIN:?set TAILWATER_BIN or TAILWATER_ENDPOINTS}" serve)
    fi
    "${command[@]}" --name one --data-dir "$work/$1" \
        --listen-client-urls "http://$endpoint" --advertise-client-urls "http://$endpoint" \
        --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
        --initial-cluster "one=http://127.0.0.1:$peer" \
        --watch-progress-notify-interval "$progress_interval" >"$build/server-$1.log" 2>&1 &
    server=$!
    for _ in $(seq 100); do
        if ! kill -0 "$server" 2>/dev/null; then
            break
        fi
        if grep -q 'ready to serve client requests' "$build/server-$1.log"; then
            return
        fi
        sleep 0.1
    done
    echo "the server did not start:" >&2
    tail -5 "$build/server-$1.log" >&2
    return 1
}

# suite NAME COMMAND…: runs the command against a fresh server and notes how it went.
suite() {
    local name=$1 started=$SECONDS
    shift
    echo "== $name"
    if start_server "$name" && TAILWATER_ENDPOINTS=$endpoint "$@"; then
        summary+=("passed: $name ($((SECONDS - started)) s)")
    else
        summary+=("FAILED: $name (server log: $build/server-$name.log)")
        failed=1
    fi
    stop_server
}

left_out() {
    summary+=("LEFT OUT: $1")
    if [[ ${CI:-} == true ]]; then
        failed=1
    fi
}

# The conditions of `if` switch off `set -e` inside a function, hence the && chains.
run_go() {
    local interval=
    # A server that is not ours has an interval of its own.
    if [[ -n $server ]]; then
        interval=$progress_interval
    fi
    # The suite of TLS starts servers of its own.
    local binary=${TAILWATER_BIN:+$(realpath "$TAILWATER_BIN")}
    cd "$here/go" && TAILWATER_BIN=$binary ETCDCTL=$etcdctl TAILWATER_WATCH_PROGRESS_INTERVAL=$interval \
        go test -count=1 . ./tls && \
        # After the others, which turn auth on and off on the same server.
        go test -count=1 ./informer
}
# It starts members of its own, so it needs a server of ours or a real one, and the mixin of etcd's release.
run_metrics() {
    local binary=${TAILWATER_BIN:+$(realpath "$TAILWATER_BIN")}
    cd "$here/../metrics" && TAILWATER_BIN=$binary go test -count=1 ./...
}
run_etcdctl() { cd "$here/etcdctl" && ETCDCTL=$etcdctl go test -count=1 -timeout 10m ./...; }
run_python() {
    # Once installed, nothing is downloaded again; another Python gets a place of its own.
    local venv
    venv=$build/venv-$(python3 -c 'import platform; print(platform.python_version())')
    python3 -m venv "$venv" &&
        "$venv/bin/pip" -q --disable-pip-version-check install -r "$here/python/requirements.txt" &&
        PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" "$here/python/smoke.py" &&
        PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" "$here/python/json_smoke.py"
}
run_node() {
    mkdir -p "$build/node" && cp "$here"/node/{package.json,smoke.js} "$build/node/" && cd "$build/node" || return 1
    # Written last, so that an installation that is cut short is not taken for a whole one.
    if ! cmp -s "$here/node/package-lock.json" installed.lock; then
        cp "$here/node/package-lock.json" . && npm ci --silent --no-audit --no-fund &&
            cp package-lock.json installed.lock || return 1
    fi
    node smoke.js
}

etcdctl=$(command -v "${ETCDCTL:-etcdctl}" || true)
# Subshells keep each suite's change of directory to itself.
in_subshell() { ("$@"); }

# The transcript goes first: it needs an empty store even when all suites share one server.
if ! command -v go >/dev/null; then
    left_out "etcdctl and go (Go is not installed)"
else
    if [[ -n $etcdctl ]]; then
        suite etcdctl in_subshell run_etcdctl
    else
        left_out "etcdctl (no etcdctl; set ETCDCTL, or build one with tests/etcd/build.sh)"
    fi
    suite go in_subshell run_go
    suite metrics in_subshell run_metrics
fi
if python3 -c 'import ensurepip, venv' 2>/dev/null; then
    suite python in_subshell run_python
else
    left_out "python (python3 with its venv module is not installed)"
fi
if node --version >/dev/null 2>&1 && npm --version >/dev/null 2>&1; then
    suite node in_subshell run_node
else
    left_out "node (Node or npm is not installed)"
fi

printf '\n'
printf '%s\n' "${summary[@]}"
exit "$failed"
