#!/usr/bin/env bash
# Runs the tests under other instruction sets, thread counts and versions of torch, and prints one line for each.
#
#     benchmarks/portability.sh [PYTHON ...]      PYTHON: interpreters that have the tests' requirements and some torch
#
# Without an argument .venv/bin/python is used, under ATEN_CPU_CAPABILITY default, avx2, avx512, ONEDNN_MAX_CPU_ISA SSE41,
# AVX2, AVX512_CORE, one and two threads, and none of these. Every further interpreter runs once as it is. WORKERS test
# processes run at once (default 2), SETTINGS="A=B C=D" replaces the list of settings, TESTS="-k name" chooses tests.
# Exit status 1 if any run fails; the logs lie in LOGS (default: a new folder under /tmp).
set -u
cd "$(dirname "$0")/.."
logs=${LOGS:-$(mktemp -d /tmp/portability.XXXXXX)}
mkdir -p "$logs"
failed=0
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} PYTHONPATH=$PWD/src

run() { # name, interpreter, settings ...
  local name=$1 python=$2 begun=$SECONDS state=passed
  shift 2
  env "$@" "$python" -m pytest -q -n "${WORKERS:-2}" --dist worksteal ${TESTS:-} >"$logs/$name.log" 2>&1 || { state=FAILED failed=1; }
  printf '%-28s %-7s %5d s  %s\n' "$name" "$state" $((SECONDS - begun)) "$(tail -n 1 "$logs/$name.log")"
}

first=${1:-.venv/bin/python}
[ $# -gt 0 ] && shift
"$first" - <<'END'
import platform, torch
print(f"Python {platform.python_version()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
END
for setting in ${SETTINGS:-as-it-is ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=avx512 \
  ONEDNN_MAX_CPU_ISA=SSE41 ONEDNN_MAX_CPU_ISA=AVX2 ONEDNN_MAX_CPU_ISA=AVX512_CORE ATENT_TEST_THREADS=2}; do
  if [ "$setting" = as-it-is ]; then run "$setting" "$first"; else run "$setting" "$first" "$setting"; fi
done
for python in "$@"; do
  name=$("$python" -c 'import sys, torch; print("python-%d.%d-torch-%s" % (*sys.version_info[:2], torch.__version__))')
  run "$name" "$python"
done
echo "logs: $logs"
exit $failed
