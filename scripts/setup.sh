#!/usr/bin/env bash
# Sees to it that this machine has what building, running, testing or measuring Atoll needs.
# Usage: scripts/setup.sh [build|lint|run|test|bench]...
# Missing Debian packages are installed if this is root; else they are named. With nothing missing,
# nothing is fetched and nothing is changed.
set -euo pipefail

packages=()
problems=()

# need COMMAND PACKAGE: the package brings the command.
need() {
  PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || packages+=("$2")
}

need_to_build() {
  need cc build-essential
  # The guest is one static file, so the C library is needed as an archive.
  compgen -G "/usr/lib/*/libc.a" >/dev/null || packages+=(libc6-dev)
  if ! command -v cargo >/dev/null 2>&1; then
    problems+=("Rust is missing: install it from https://rustup.rs (version 1.88 or later)")
  fi
}

need_to_lint() {
  command -v cargo >/dev/null 2>&1 || return 0
  cargo fmt --version >/dev/null 2>&1 || problems+=("rustfmt is missing: rustup component add rustfmt")
  cargo clippy --version >/dev/null 2>&1 || problems+=("clippy is missing: rustup component add clippy")
}

need_to_run() {
  need nft nftables
  need mkfs.ext4 e2fsprogs
  # The smallest systems have no mount, which mmdebstrap uses.
  need mount mount
  need mmdebstrap mmdebstrap
  need qemu-system-x86_64 qemu-system-x86
  need mkfs.erofs erofs-utils
  need xz xz-utils
  python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
  [ "$(id -u)" = 0 ] || problems+=("this is not root: sandboxes need namespaces and mounts; use sudo")
}

# need_room GB: of space for what is built, besides what is there already.
need_room() {
  local target=${CARGO_TARGET_DIR:-$(dirname "$0")/../target} there free
  mkdir -p "$target"
  there=$(du -sk "$target" | cut -f1)
  free=$(df -Pk "$target" | awk 'NR == 2 { print $4 }')
  if [ $((there + free)) -lt $(($1 * 1000000)) ]; then
    problems+=("$(df -Pk "$target" | awk 'NR == 2 { print $6 }') has $((free / 1000000)) GB left, and this takes up to $1 GB: make room, or set CARGO_TARGET_DIR")
  fi
}

for purpose in "${@:-build}"; do
  need_to_build
  case $purpose in
    build) ;;
    run)
      need_to_run
      need_room 6
      ;;
    lint) need_to_lint ;;
    test)
      need_room 20
      need_to_run
      need_to_lint
      need ip iproute2
      need sysctl procps
      # What templates are pulled from.
      need docker-registry docker-registry
      # What the fleet's power drivers are held against.
      need ipmitool ipmitool
      need openssl openssl
      # What the mesh is held against.
      need ping iputils-ping
      need wireguard-go wireguard-go
      need wg wireguard-tools
      need dig bind9-dnsutils
      need miniupnpd miniupnpd-nftables
      need nft nftables
      need curl curl
      need etcd etcd-server
      need etcdctl etcd-client
      need redis-server redis-server
      need redis-cli redis-tools
      compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null || packages+=(postgresql)
      ;;
    bench)
      need_to_run
      need runc runc
      need ip iproute2
      need ping iputils-ping
      need wireguard-go wireguard-go
      need wg wireguard-tools
      need iperf3 iperf3
      ;;
    *)
      echo "error: $purpose: one of build, lint, run, test, bench" >&2
      exit 2
      ;;
  esac
done

if [ ${#packages[@]} -gt 0 ]; then
  mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
  if [ "$(id -u)" != 0 ]; then
    problems+=("packages are missing: sudo apt-get install ${packages[*]}")
  elif ! command -v apt-get >/dev/null 2>&1; then
    problems+=("this is not Debian or Ubuntu; what these Debian packages hold is missing: ${packages[*]}")
  else
    echo "installing ${packages[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    # Only programs are wanted here: no service that comes with one is to be started, and no database made.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
      trap 'rm -f /usr/sbin/policy-rc.d' EXIT
      printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
      chmod 755 /usr/sbin/policy-rc.d
    fi
    if [[ " ${packages[*]} " == *" postgresql "* ]] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
      mkdir -p /etc/postgresql-common
      echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    fi
    if ! { apt-get update -q && apt-get install -q -y --no-install-recommends "${packages[@]}"; } >&2; then
      problems+=("apt-get could not install ${packages[*]}: see above")
    fi
  fi
fi

if [ ${#problems[@]} -gt 0 ]; then
  printf 'error: %s\n' "${problems[@]}" >&2
  exit 1
fi
