#!/usr/bin/env bash
# Every suite: Rust's, then the clients that nobody here wrote. What can't run on this machine is named at the end;
# with CI=true that is a failure. ACCEPTANCE=1 runs the full counts.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
left_out=()
if [ "${ACCEPTANCE:-}" = 1 ]; then
  export DIFF_SEEDS=${DIFF_SEEDS:-50} DIFF_OPS=${DIFF_OPS:-2000}
fi
output=$(mktemp -t tailwater-test.XXXXXX)
trap 'rm -f "$output"' EXIT

if command -v go >/dev/null; then
  tests/etcd/build.sh "$target/reference"
  export ETCD=${ETCD:-$target/reference/etcd} ETCDCTL=${ETCDCTL:-$target/reference/etcdctl}
  export ETCDUTL=${ETCDUTL:-$target/reference/etcdutl}
else
  left_out+=("the comparison with a real etcd (Go is not installed)")
fi

# Of all targets, as the tests below want it: another selection would compile RocksDB a second time.
cargo build --workspace --all-targets
if [ "${ACCEPTANCE:-}" = 1 ]; then
  # The full counts measure too, so they take what users run.
  cargo build --release -p tailwater-server -p tailwater-bench
  export TAILWATER=${TAILWATER:-$target/release/tailwater} TAILWATER_BENCH=${TAILWATER_BENCH:-$target/release/tailwater-bench}
fi
export TAILWATER=${TAILWATER:-$target/debug/tailwater}

cargo test --workspace --no-fail-fast 2>&1 | tee "$output"
while IFS= read -r line; do left_out+=("${line#LEFT OUT: }"); done < <(grep -h '^LEFT OUT: ' "$output" | sort -u || true)

# It leaves out by itself what it has no tools for.
TAILWATER_BIN=$TAILWATER TARGET_DIR=$target tests/clients/run.sh 2>&1 | tee "$output"
while IFS= read -r line; do left_out+=("${line#LEFT OUT: }"); done < <(grep -h '^LEFT OUT: ' "$output" | sort -u || true)

# A real Kubernetes API server; the full form compares with etcd.
form=SHORT=1
if [ "${ACCEPTANCE:-}" = 1 ]; then form=FULL=1; fi
env "$form" TAILWATER_BIN="$TAILWATER" ETCD_BIN="${ETCD:-}" TARGET_DIR="$target" tests/kubernetes/run.sh 2>&1 | tee "$output"
while IFS= read -r line; do left_out+=("${line#LEFT OUT: }"); done < <(grep -h '^LEFT OUT: ' "$output" | sort -u || true)

if [ "${ACCEPTANCE:-}" = 1 ]; then
  scripts/instructions.sh 2>&1 | tee "$output"
  while IFS= read -r line; do left_out+=("${line#LEFT OUT: }"); done < <(grep -h '^LEFT OUT: ' "$output" || true)
fi

if [ ${#left_out[@]} -gt 0 ]; then
  printf '\nLeft out on this machine:\n'
  printf '  - %s\n' "${left_out[@]}"
  if [ "${CI:-}" = true ]; then
    echo 'CI=true: nothing may be left out.' >&2
    exit 1
  fi
fi
echo 'make test: all suites that ran passed'
