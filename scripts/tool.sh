#!/usr/bin/env bash
# tool.sh NAME: prints where a tool written in Rust is, that the tests need. One that is installed
# is taken; otherwise it is built once for this user, kept where caches are, not among what is
# built here: a fresh clone needs no other. Unoptimised, as it is built faster than it would gain.
set -euo pipefail
name=$1
tools=${XDG_CACHE_HOME:-$HOME/.cache}/atoll/tools
if command -v "$name"; then
  exit
fi
if [ ! -x "$tools/bin/$name" ]; then
  echo "installing $name into $tools" >&2
  mkdir -p "$tools"
  CARGO_TARGET_DIR=$tools/build CARGO_PROFILE_DEV_DEBUG=0 \
    cargo install --quiet --locked --debug --root "$tools" "$name" >&2
  rm -rf "$tools/build"
fi
echo "$tools/bin/$name"
