#!/usr/bin/env bash
# Builds the C++ library and tools: `scripts/build_cpp.sh [PRESET]`, release if not given, which the
# Makefile calls. Debian packages that are missing are installed where that is allowed, else the
# command is printed.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
packages="cmake g++ make libcli11-dev libcurl4-openssl-dev libgtest-dev libpng-dev libturbojpeg0-dev nlohmann-json3-dev pkg-config zlib1g-dev"
# For the embedded Triton's backend: Debian's own Python has its headers and library in a package.
headers=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))' 2> /dev/null || true)
[ -f "$headers/Python.h" ] || packages+=" python3-dev"
[ "$preset" = fuzz ] && packages+=" clang libclang-rt-14-dev"

fail() { echo "build_cpp: $*" >&2; exit 2; }

if command -v dpkg-query > /dev/null; then  # elsewhere CMake says what it doesn't find
  missing=
  for package in $packages; do
    dpkg-query --show --showformat '${db:Status-Status}' "$package" 2> /dev/null | grep -qx installed \
      || missing+=" $package"
  done
  if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || fail "missing packages; run: sudo apt-get install$missing"
    echo "==> Installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install --yes --no-install-recommends $missing; } > /dev/null \
      || fail "can't install the packages; try: apt-get install$missing"
  fi
fi
command -v cmake > /dev/null || fail "no cmake found; docs/cpp.md lists what the build needs"

start=$SECONDS
cd cpp_client
# CMake refuses a build folder that came from elsewhere with a copied or moved checkout.
cache=build/$preset/CMakeCache.txt
if [ -f "$cache" ] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$(pwd -P)" "$cache"; then
  rm -rf "build/$preset"
fi
unset MAKEFLAGS MAKELEVEL  # of the make that called: it would print every folder
cmake --preset "$preset" --log-level=WARNING > /dev/null
cmake --build --preset "$preset" --parallel "$(getconf _NPROCESSORS_ONLN)" \
  | { grep --line-buffered -v 'Built target' || true; }
echo "==> cpp_client/build/$preset ready after $((SECONDS - start)) s"
