#!/usr/bin/env bash
# The root filesystem of the image, made and tried without a container engine.
#   rootfs.sh make BINARY DIRECTORY   the program, the libraries that it loads, a user, certificates of authorities
#   rootfs.sh try DIRECTORY           runs the program with that directory as its root: it serves, answers and stops
set -euo pipefail
user=65532

usage() {
  sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

make_root() {
  local binary=$1 root=$2 library
  if [ -e "$root" ]; then
    echo "$root is there already" >&2
    exit 1
  fi
  mkdir -p "$root"/{etc/ssl/certs,usr/bin,var/lib/tailwater,tmp}
  chmod 1777 "$root/tmp"
  install -m 755 "$binary" "$root/usr/bin/tailwater"
  ln -s tailwater "$root/usr/bin/etcd"
  # By the paths that the loader looks at, the loader itself among them.
  while IFS= read -r library; do
    install -D -m 755 "$library" "$root$library"
  done < <(ldd "$binary" | grep -o '/[^ ]*')
  printf 'root:x:0:0::/:/nologin\ntailwater:x:%s:%s::/var/lib/tailwater:/nologin\n' "$user" "$user" >"$root/etc/passwd"
  printf 'root:x:0:\ntailwater:x:%s:\n' "$user" >"$root/etc/group"
  # Without it, names are asked of DNS before /etc/hosts.
  echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
  if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  fi
  if [ "$(id -u)" = 0 ]; then
    chown "$user:$user" "$root/var/lib/tailwater"
  fi
  chmod 700 "$root/var/lib/tailwater"
}

# A port below those that the kernel hands out by itself, where nothing listens.
free_port() {
  local port
  while port=$((22000 + RANDOM % 900)) && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

clean_up() {
  if [ -n "$server" ]; then
    kill -KILL "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "${made[@]}"
}

fail() {
  echo "$1; the end of its log:" >&2
  tail -n 5 "$log" >&2
  exit 1
}

try_root() {
  local client peer status=0 enter chroot size data=/var/lib/tailwater/try
  root=$1 server='' log=$(mktemp)
  size="$(du -sh "$root" | cut -f1) in $(find "$root" -type f | wc -l) files"
  made=("$log" "$root$data" "$root$data.db")
  trap clean_up EXIT
  chroot=$(PATH=$PATH:/usr/sbin:/sbin command -v chroot)
  # As the image's user, or without rights as the only user of a namespace.
  if [ "$(id -u)" = 0 ]; then
    enter=("$chroot" --userspec="$user:$user" "$root")
  else
    enter=(unshare --user --map-root-user "$chroot" "$root")
  fi
  if [ ! -e "$root/etc/hosts" ]; then
    # A container engine brings it.
    echo '127.0.0.1 localhost' >"$root/etc/hosts"
    made+=("$root/etc/hosts")
  fi
  "${enter[@]}" /usr/bin/tailwater --version
  "${enter[@]}" /usr/bin/etcd --version
  client=$(free_port)
  while peer=$(free_port) && [ "$peer" = "$client" ]; do :; done
  # By a name, which takes the resolver as well.
  "${enter[@]}" /usr/bin/tailwater serve --data-dir "$data" \
    --listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://localhost:$client" \
    --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://localhost:$peer" \
    --initial-cluster "default=http://localhost:$peer" 2>"$log" &
  server=$!
  for _ in $(seq 300); do
    grep -q 'ready to serve client requests' "$log" && break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  grep -q 'ready to serve client requests' "$log" || fail 'the server does not serve in this root'
  "${enter[@]}" /usr/bin/tailwater bench put --endpoints="http://localhost:$client" --total=10 >/dev/null
  "${enter[@]}" /usr/bin/tailwater snapshot save "$data.db" --endpoints="http://localhost:$client"
  "${enter[@]}" /usr/bin/tailwater snapshot status "$data.db"
  kill -TERM "$server"
  wait "$server" || status=$?
  server=''
  # By the signal that it was sent, or well.
  [ "$status" = 0 ] || [ "$status" = 143 ] || fail "the server ended with $status"
  echo "the root filesystem is complete: $size"
}

case ${1:-} in
  make) [ $# = 3 ] || usage; make_root "$2" "$3" ;;
  try) [ $# = 2 ] || usage; try_root "$(realpath "$2")" ;;
  *) usage ;;
esac
