#!/usr/bin/env bash
# Builds sdist and wheel into dist/, checks them, and uses the wheel in a new environment outside the checkout.
#
#     benchmarks/release.sh [PYTHON]      PYTHON: an interpreter with `build` and `twine` (default: .venv/bin/python)
#
# Exit status 1 at the first step that fails.
set -eu
cd "$(dirname "$0")/.."
root=$PWD python=${1:-.venv/bin/python}
place=$(mktemp -d /tmp/release.XXXXXX)
trap 'rm -rf "$place"' EXIT
rm -rf dist
"$python" -m build
"$python" -m twine check --strict dist/*
"$python" -m venv "$place/env"
"$place/env/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
cd "$place"
unset PYTHONPATH
atent=$place/env/bin/atent
"$place/env/bin/python" -c "import atent; assert not atent.__file__.startswith('$root/'), atent.__file__"
version=$("$place/env/bin/python" -c 'import sys, tomllib; print(tomllib.load(open(sys.argv[1], "rb"))["project"]["version"])' \
  "$root/pyproject.toml")
"$atent" --version
test "$("$atent" --version)" = "atent $version"
"$atent" recipes > recipes.txt
grep -q digits-linf-atent recipes.txt
"$atent" train digits-linf-pgdat --no-baseline --train.epochs 1 --quiet
"$atent" evaluate zoo:digits-linf-crown-ibp --attacks "PGD(steps=20)" --limit 100 --quiet
"$atent" report runs/digits-linf-pgdat
test -s runs/digits-linf-pgdat/report.html
echo "the wheel works outside the checkout"
