#!/usr/bin/env bash
# Whether deploy/ works: the chart, kustomize, kubeadm's files, units, rules and dashboards are read by those who would read
# them, and what they start is started; the image's root filesystem is made and tried.
#   TAILWATER_BIN   server binary to start
#   TARGET_DIR      where the test is built (default: target)
# What can't run here is named by a line "LEFT OUT: …"; with CI=true that is a failure.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
binary=$(realpath "${TAILWATER_BIN:?set TAILWATER_BIN}")
build=${TARGET_DIR:-$root/target}/deploy
mkdir -p "$build"
build=$(cd "$build" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
left_out() {
  echo "LEFT OUT: $1"
  [ "${CI:-}" != true ] || failed=1
}

echo '== the root filesystem'
if [ "$(id -u)" = 0 ] || unshare --user --map-root-user true 2>/dev/null; then
  # As the Dockerfile does it.
  strip --strip-debug -o "$work/tailwater" "$binary"
  "$root/deploy/rootfs.sh" make "$work/tailwater" "$work/rootfs"
  "$root/deploy/rootfs.sh" try "$work/rootfs"
else
  left_out "the image's root filesystem (it takes root or user namespaces)"
fi

echo '== deploy'
if command -v go >/dev/null; then
  cd "$here"
  go test -c -o "$build/deploy.test" .
  TAILWATER_BIN=$binary "$build/deploy.test" -test.timeout 10m | tee "$work/output" || failed=1
  if grep -q '^LEFT OUT: ' "$work/output" && [ "${CI:-}" = true ]; then
    failed=1
  fi
else
  left_out "deploy (Go is not installed)"
fi
exit "$failed"
