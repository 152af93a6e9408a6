#!/usr/bin/env bash
# A linear probe, leave one domain out: every target domain x every seed, then the table.
#
#   bash scripts/linear_probe/main.sh                                     the embedded default, MiniDigits
#   bash scripts/linear_probe/main.sh <dataset> [backbone] [KEY VALUE ...]
#
# dataset: a name of configs/datasets/ or a folder <domain>/<class>/<image>; backbone: an OpenAI name or a file.
# From the environment: DATA (data), OUTPUT (output), SEEDS ("1 2 3"), TARGETS (all domains), CFG (config of the method).
set -euo pipefail
source "$(dirname "$0")/../setup.sh"
exec "$PYTHON" "$repository/scripts/launch.py" linear_probe "$@"
