#!/usr/bin/env bash
# Runs the tests. Arguments go to pytest: -m gpu selects the tests that need a GPU.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
cd "$repository"
install_missing requirements-dev.txt
# Two processes fit on most machines.
exec "$PYTHON" -m pytest -n 2 "$@"
