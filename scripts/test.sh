#!/usr/bin/env bash
# The test suite, after the same set-up as the launchers'. Arguments go to pytest; -m gpu runs what needs a CUDA device.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
cd "$repository"
install_missing requirements-dev.txt
# Two processes, which few machines are too small for.
exec "$PYTHON" -m pytest -n 2 "$@"
