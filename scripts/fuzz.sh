#!/usr/bin/env bash
# Lets libFuzzer attack the C++ readers: `scripts/fuzz.sh [SECONDS]`, 60 for each target if not given.
# Starts from the seeds of cpp_client/fuzz/corpus and ends with 1 where something was found.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
scripts/build_cpp.sh fuzz
build=cpp_client/build/fuzz
for target in idx image metadata; do
  echo "==> $target, $seconds s"
  mkdir -p "$build/corpus/$target" "$build/found"
  "$build/fuzz/${target}_fuzzer" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 \
    -max_len=8192 -print_final_stats=1 -verbosity=0 -artifact_prefix="$build/found/$target-" \
    "$build/corpus/$target" "cpp_client/fuzz/corpus/$target" \
    || { echo "fuzz: $target failed on the input in $build/found" >&2; exit 1; }
done
