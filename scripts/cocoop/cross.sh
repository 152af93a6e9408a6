#!/usr/bin/env bash
# CoCoOp, cross-dataset: trained on all domains of one set, tested on others with their class names; then the table.
#
#   bash scripts/cocoop/cross.sh [dataset] [other,datasets] [backbone] [KEY VALUE ...]
#
# dataset, other: names of configs/datasets/ or folders <domain>/<class>/<image>; the published protocol, and the
# default, is domainnet pacs,vlcs,office_home,terra_incognita. backbone: an OpenAI name or a file.
# From the environment: DATA (data), OUTPUT (output), SEEDS ("1 2 3"), CFG (config of the method).
set -euo pipefail
source "$(dirname "$0")/../setup.sh"
exec "$PYTHON" "$repository/scripts/launch.py" --protocol cross cocoop "$@"
