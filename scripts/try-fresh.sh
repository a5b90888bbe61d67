#!/usr/bin/env bash
# Tries the two commands where nothing is installed: a new Debian or Ubuntu in a folder, with make, git and
# this machine's Rust, and an empty home.
# Usage: scripts/try-fresh.sh [SUITE [DISTRIBUTION'S ADDRESS]]   e.g. bookworm, trixie, noble
# Needs root and mmdebstrap. Nothing of this machine changes: all that is made is in one folder under
# ${TMPDIR:-/tmp}, with mounts that end with this script. KEEP=1 keeps the folder. What is committed is
# tried, and nothing else. How this machine reaches its package registries is copied into the folder:
# certificates, resolv.conf, apt's, Cargo's, pip's and npm's settings.
#
# 1. make run ONCE=1, which fetches and installs all that it needs
# 2. make run ONCE=1 with the network cut off: it must need nothing more
# 3. what `make test` needs beyond that, and one test with each SDK
set -euo pipefail
cd "$(dirname "$0")/.."
suite=${1:-bookworm}
address=${2:-}
source=$PWD

[ "$(id -u)" = 0 ] || { echo "error: needs root: it makes a root file system and mounts" >&2; exit 1; }
for command in mmdebstrap unshare ip git python3 rustc; do
  command -v "$command" >/dev/null || { echo "error: $command is missing" >&2; exit 1; }
done

# All below happens in a mount namespace of its own: whatever happens, the mounts end with it.
if [ -z "${TRY_FRESH_ROOT:-}" ]; then
  TRY_FRESH_ROOT=$(mktemp -d "${TMPDIR:-/tmp}/atoll-fresh.XXXXXX")
  export TRY_FRESH_ROOT
  status=0
  unshare --mount "$0" "$@" || status=$?
  # After a failure something may still run there.
  for process in /proc/[0-9]*; do
    case $(readlink "$process/root") in "$TRY_FRESH_ROOT"/*) kill -KILL "${process#/proc/}" ;; esac
  done 2>/dev/null || true
  if [ -n "${KEEP:-}" ]; then
    echo "kept: $TRY_FRESH_ROOT" >&2
  else
    rm -rf --one-file-system "$TRY_FRESH_ROOT"
  fi
  exit "$status"
fi
root=$TRY_FRESH_ROOT/root

say() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

say "a new $suite"
sources=()
if [ -n "$address" ]; then
  sources=("$address")
fi
chmod 755 "$TRY_FRESH_ROOT"
mmdebstrap --quiet --variant=apt --include=make,git,ca-certificates "$suite" "$root" "${sources[@]}"

# How this machine reaches its registries.
if [ -z "$address" ]; then
  rm -f "$root/etc/apt/sources.list"
  for path in sources.list sources.list.d apt.conf.d auth.conf.d; do
    [ ! -e "/etc/apt/$path" ] || cp -rL "/etc/apt/$path" "$root/etc/apt/"
  done
fi
mkdir -p "$root/root/.cargo" "$root/root/.config" "$root/usr/local/share/ca-certificates"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
cp -r /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
for path in .cargo/config.toml .cargo/config .config/pip .npmrc; do
  [ ! -e "$HOME/$path" ] || cp -r "$HOME/$path" "$root/root/$path"
done
for path in /etc/pip.conf /etc/npmrc; do
  [ ! -e "$path" ] || cp "$path" "$root$path"
done

git clone -q "$source" "$root/root/atoll"

# The new root is a mount, as every root is: what makes mount namespaces in it counts on that.
mount --bind "$root" "$root"
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
# Instances that share a network remember there what they found, so it is the same folder for both.
mkdir -p /run/atoll "$root/run/atoll"
mount --bind /run/atoll "$root/run/atoll"

# Rust: the toolchain that this machine has, as it is; an empty home of Cargo.
toolchain=$(rustc --print sysroot)
mkdir -p "$root/opt/rust"
mount --bind "$toolchain" "$root/opt/rust"
mount -o remount,bind,ro "$root/opt/rust"

# Makes a mount its root and starts a command there. A chroot would not do: no user namespace can be
# made in one. In Python, as nothing of the old root can be started once there is another.
enter='
import ctypes, os, sys
system = ctypes.CDLL(None, use_errno=True)
def done(result):
    if result != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
os.chdir(sys.argv[1])
done(system.pivot_root(b".", b"."))
done(system.umount2(b".", 2))
os.chdir("/")
os.execvp(sys.argv[2], sys.argv[2:])
'

# inside COMMAND…: runs it in the new system, with an environment of its own.
inside() {
  env -i HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 ONCE=1 \
    PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt \
    ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
    unshare --mount "$python" -c "$enter" "$root" nice -n "${NICE:-0}" "$@"
}
python=$(python3 -c 'import sys; print(sys.executable)')
export -f inside
export enter python root

inside update-ca-certificates >/dev/null 2>&1

say "make run ONCE=1"
inside make -C /root/atoll run
say "make run ONCE=1 with the network cut off"
began=$SECONDS
unshare --net --mount bash -euc '
  umount "$root/run/atoll"
  ip link set lo up
  inside make -C /root/atoll run
'
seconds=$((SECONDS - began))
[ "$seconds" -le 60 ] || { echo "error: the second time took $seconds s" >&2; exit 1; }

say "what make test needs beyond that, and a test with each SDK"
inside bash -euc 'cd /root/atoll; scripts/setup.sh test; tests/run.sh js sdk/test_life.py::test_create_run_kill'
[ -z "$(git -C "$root/root/atoll" status --porcelain --untracked-files=all)" ] \
  || { echo "error: the tree was written to" >&2; git -C "$root/root/atoll" status --short >&2; exit 1; }
say "all is well"
