#!/usr/bin/env bash
# All methods side by side: every method x every target domain x every seed, then the table and report.html.
# Flags, words and environment variables: bash scripts/compare.sh --help
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PYTHON" "$repository/scripts/launch.py" --compare "$@"
