#!/usr/bin/env bash
# Makes sure that what a build needs is on the machine: installs Debian packages where it may, and otherwise names in
# one sentence what to install. Quiet when nothing is missing.
set -euo pipefail

missing=()
command -v cc >/dev/null || command -v gcc >/dev/null || missing+=(build-essential)
command -v c++ >/dev/null || command -v g++ >/dev/null || missing+=(build-essential)
# raft-rs compiles its .proto files with protoc.
command -v protoc >/dev/null || missing+=(protobuf-compiler)
# RocksDB's bindings are generated with libclang; clang brings the header files that it reads.
{ command -v clang >/dev/null && { ldconfig -p 2>/dev/null | grep -q libclang || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null; }; } ||
  missing+=(clang libclang-dev)

if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo -n)
  if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
    echo "installing ${missing[*]} ..." >&2
    "${as_root[@]}" apt-get update -qq >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >&2
  else
    echo "tailwater needs these packages (Debian names) to build: ${missing[*]}; install them and run make again." >&2
    exit 1
  fi
fi

if ! command -v cargo >/dev/null; then
  echo "tailwater needs Rust: install it with rustup (https://rustup.rs) and run make again." >&2
  exit 1
fi
