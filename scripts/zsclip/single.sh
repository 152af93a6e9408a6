#!/usr/bin/env bash
# Zero-shot CLIP, single source: trained on each domain, tested on each other one; every seed, then the table.
#
#   bash scripts/zsclip/single.sh <dataset> [backbone] [KEY VALUE ...]
#
# dataset: a name of configs/datasets/ or a folder <domain>/<class>/<image>; backbone: an OpenAI name or a file.
# From the environment: DATA (data), OUTPUT (output), SEEDS ("1 2 3"), SOURCES (all domains), CFG (config of the method).
set -euo pipefail
source "$(dirname "$0")/../setup.sh"
exec "$PYTHON" "$repository/scripts/launch.py" --protocol single zsclip "$@"
