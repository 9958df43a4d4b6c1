#!/usr/bin/env bash
# Builds the unmodified reference programs (etcd, etcdctl, etcdutl) that the tests compare with.
# Usage: build.sh OUTDIR. Versions come from go.mod beside this file; nothing is done when OUTDIR already
# holds a build of exactly these versions by this Go.
set -euo pipefail

if [[ $# -ne 1 ]]; then
    echo "usage: $0 OUTDIR" >&2
    exit 2
fi
if ! command -v go >/dev/null; then
    echo "$0: Go is needed to build etcd; install it from https://go.dev/dl" >&2
    exit 1
fi

mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")"

stamp=$({ cat go.mod go.sum; go version; } | cksum)
if [[ -x $out/etcd && -x $out/etcdctl && -x $out/etcdutl && -f $out/etcd.stamp ]] &&
    [[ $(<"$out/etcd.stamp") == "$stamp" ]]; then
    exit 0
fi

# The stamp goes first, so that a build that is cut short is not taken for a whole one.
rm -f "$out/etcd.stamp"
export CGO_ENABLED=0
go build -trimpath -o "$out/etcd" go.etcd.io/etcd/server/v3
go build -trimpath -o "$out/etcdctl" go.etcd.io/etcd/etcdctl/v3
go build -trimpath -o "$out/etcdutl" go.etcd.io/etcd/etcdutl/v3
echo "$stamp" >"$out/etcd.stamp"
