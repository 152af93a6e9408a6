#!/usr/bin/env bash
# Runs every method on every target domain with every seed, then prints the table and writes report.html.
# Flags, words and environment variables: bash scripts/compare.sh --help
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PYTHON" "$repository/scripts/launch.py" --compare "$@"
