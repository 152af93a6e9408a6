#!/usr/bin/env bash
# All methods side by side: every method x every target domain x every seed, then the table and report.html.
#
#   bash scripts/compare.sh <dataset> [backbone] [KEY VALUE ...]
#
# dataset: a name of configs/datasets/ or a folder <domain>/<class>/<image>; backbone: an OpenAI name or a file.
# From the environment: METHODS (zsclip,zsclip2,linear_probe,coop,cocoop,spg), PROTOCOL (multi; single), BASELINE (the
# method that differences are to: ZeroshotCLIP; "" for none), and as for each method: DATA (data), OUTPUT (output),
# SEEDS ("1 2 3"), TARGETS or SOURCES (all domains), CFG (for those that have a config of that name). The report:
# $OUTPUT/<dataset>/report.html.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PYTHON" "$repository/scripts/launch.py" --report --protocol "${PROTOCOL:-multi}" \
    "${METHODS:-zsclip,zsclip2,linear_probe,coop,cocoop,spg}" "$@"
