# Launchers source this file. It sets PYTHON to the first Python that has the packages of requirements.txt: $PYTHON, .venv,
# python3, python. If none has them, it makes .venv and installs them there. As a command, it prints the Python.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Succeeds if the Python $1 has the packages of the file $2.
has_packages() {
    "$1" - "$2" 2>/dev/null <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from pkg_resources import parse_requirements

if sys.version_info < (3, 10):
    sys.exit(1)
for requirement in parse_requirements(open(sys.argv[1], encoding="utf-8")):
    try:
        fits = version(requirement.project_name) in requirement
    except PackageNotFoundError:
        # OpenAI's own clip, installed from git, serves as well.
        fits = requirement.project_name == "clip-anytorch" and find_spec("clip") is not None
    if not fits:
        sys.exit(1)
PY
}

# Installs the packages of the repository's file $1 for $PYTHON if some are missing.
install_missing() {
    if ! has_packages "$PYTHON" "$repository/$1"; then
        echo "Installing $1 for $PYTHON (once; may take minutes)" >&2
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$repository/$1" || {
            echo "Error: pip could not install $1 (see above). Check the network and run the command again." >&2
            exit 1
        }
    fi
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" "$repository/.venv/bin/python" python3 python; do
        if [ -n "$candidate" ] && has_packages "$candidate" "$repository/requirements.txt"; then
            PYTHON=$candidate
            return 0
        fi
    done
    return 1
}

if ! find_python; then
    base=${PYTHON:-python3}
    if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "Error: Python 3.10 or newer is needed, and '$base' is not. Name one: PYTHON=/path/to/python bash $0" >&2
        exit 1
    fi
    "$base" -m venv "$repository/.venv" || exit 1
    PYTHON=$repository/.venv/bin/python
    install_missing requirements.txt
    PYTHON=
    find_python || {
        echo "Error: $repository/.venv still lacks packages of requirements.txt; delete it and run the command again." >&2
        exit 1
    }
fi
export PYTHON
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    echo "Python with the packages: $(command -v "$PYTHON")"
fi
