#!/usr/bin/env bash
# Checks lint, format, types and English.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
cd "$repository"
install_missing requirements-dev.txt
failed=0
"$PYTHON" -m ruff check . || failed=1
"$PYTHON" -m ruff format --check . || failed=1
"$PYTHON" -m mypy || failed=1
"$PYTHON" tests/prose.py || failed=1
exit $failed
