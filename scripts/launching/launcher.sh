# Sourced by scripts/<method>/{main,single,cross}.sh: that method, under the protocol that the file is named for.
# Flags, words and environment variables: bash scripts/spg/main.sh --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
method=$(basename "$(cd "$(dirname "$0")" && pwd)")
protocol=$(basename "$0" .sh)
exec "$PYTHON" "$repository/scripts/launch.py" --protocol "${protocol/main/multi}" --methods "$method" "$@"
