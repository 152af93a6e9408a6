#!/usr/bin/env bash
source "$(dirname "$0")/../setup.sh"
exec "$PYTHON" "$repository/scripts/launch.py" --script "$0" "$@"
