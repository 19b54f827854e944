#!/usr/bin/env bash
# Makes the environment .venv and the embedded server .triton: `scripts/bootstrap.sh`, which the
# Makefile calls.
# PYTHON chooses the interpreter; pip's own variables (PIP_INDEX_URL, ...) apply.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

fail() { echo "bootstrap: $*" >&2; exit 2; }

command -v "$python" > /dev/null || fail "no '$python' found; install Python >= 3.11 or set PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || fail "$("$python" --version) found, Python >= 3.11 needed; set PYTHON=... to a newer one"
"$python" -c 'import ensurepip, venv' 2> /dev/null \
  || fail "this Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"

start=$SECONDS
echo "==> Making .venv with $("$python" --version): the PyTorch packages are several GB, this takes minutes"
if [ -L .venv ]; then rm .venv; fi  # a link leads to another checkout's, which stays as it is
"$python" -m venv --clear .venv
quiet=--quiet
[ -t 1 ] && quiet=  # someone is watching: show pip's progress
.venv/bin/python -m pip install $quiet --disable-pip-version-check \
  --constraint constraints.txt --editable '.[export,openvino,serve,train,dev]'

# The embedded Triton, apart from the environment: nothing of the wheel is imported. Where it can't
# run (nin.serve.server says why), everything else works, and the container serves the same models.
rm -rf .triton
if ! { [ "$(uname -sm)" = "Linux x86_64" ] \
  && .venv/bin/python -m pip install $quiet --disable-pip-version-check --no-deps \
    --only-binary :all: --target .triton nvidia-pytriton==0.7.0; }; then
  rm -rf .triton
  echo "==> No embedded Triton: it needs Linux x86_64 and glibc 2.35"
fi
pwd -P > .venv/complete  # the Makefile compares it with where the checkout is now
echo "==> Environment ready after $((SECONDS - start)) s"
