#!/usr/bin/env bash
# The test suite, after the same set-up as the launchers'. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
cd "$repository"
# Two processes, which few machines are too small for, of one thread each, so that they do not wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$PYTHON" -m pytest -n 2 "$@"
