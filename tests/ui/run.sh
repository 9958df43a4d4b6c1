#!/usr/bin/env bash
# `/ui` in a headless Chromium, on three members and four fanouts under load: is it there within a second, does it show them all,
# and the next leader when one is killed? Leaves pictures in TARGET_DIR/ui.
#   TAILWATER_BIN   server binary to start
#   CHROMIUM        the browser (default: chromium or google-chrome from PATH)
#   TARGET_DIR      where the pictures go (default: target)
#   LOAD_MAX_MS     what the page may take (default: 1000), for a machine that is busy with other work
# Where a tool is missing, a line "LEFT OUT: …" says so; with CI=true that is a failure.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
pictures=${TARGET_DIR:-$root/target}/ui
mkdir -p "$pictures"

left_out() {
    echo "LEFT OUT: the page /ui in a browser ($1)"
    if [[ ${CI:-} == true ]]; then exit 1; fi
    exit 0
}

node --version >/dev/null 2>&1 || left_out 'Node is not installed'
for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
    if [[ -n $name ]] && chromium=$(command -v "$name"); then break; fi
done
[[ -n ${chromium:-} ]] || left_out 'Chromium is not installed; set CHROMIUM, or install the package chromium'

TAILWATER_BIN=$(realpath "${TAILWATER_BIN:?set TAILWATER_BIN}") CHROMIUM=$chromium PICTURES=$(realpath "$pictures") \
    node "$here/page.js"
