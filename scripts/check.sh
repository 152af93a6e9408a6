#!/usr/bin/env bash
# Lint, format and types, after the same set-up as the launchers'.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
cd "$repository"
install_missing requirements-dev.txt
failed=0
"$PYTHON" -m ruff check . || failed=1
"$PYTHON" -m ruff format --check . || failed=1
"$PYTHON" -m mypy || failed=1
exit $failed
