#!/usr/bin/env bash
# Lint, format and types, after the same set-up as the launchers'. Its own tools are installed where they are missing.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
cd "$repository"
if ! has_packages "$PYTHON" requirements-dev.txt; then
    echo "Installing requirements-dev.txt for $PYTHON (once)" >&2
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt || {
        echo "Error: pip could not install requirements-dev.txt (see above). Check the network and run the command again." >&2
        exit 1
    }
fi
failed=0
"$PYTHON" -m ruff check . || failed=1
"$PYTHON" -m ruff format --check . || failed=1
"$PYTHON" -m mypy || failed=1
exit $failed
