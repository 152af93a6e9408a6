#!/usr/bin/env bash
# CoOp, leave one domain out: every target domain x every seed, then the table.
#
#   bash scripts/coop/main.sh                                     the embedded default, MiniDigits
#   bash scripts/coop/main.sh <dataset> [backbone] [KEY VALUE ...]
#
# dataset: a name of configs/datasets/ or a folder <domain>/<class>/<image>; backbone: an OpenAI name or a file.
# From the environment: DATA (data), OUTPUT (output), SEEDS ("1 2 3"), TARGETS (all domains), CFG (config of the method).
set -euo pipefail
source "$(dirname "$0")/../setup.sh"
exec "$PYTHON" "$repository/scripts/launch.py" coop "$@"
