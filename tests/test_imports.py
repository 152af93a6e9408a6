"""The import of one method stays small."""

import subprocess
import sys

from quick_run import REPOSITORY


def test_method_import_loads_at_most_50_modules():
    code = (
        "import sys, common.startup; common.startup.prepare_imports(); import trainers.coop; "
        "ours = {'trainers', 'common', 'datasets', 'scripts'}; "
        "print(*(name for name in sys.modules if name.partition('.')[0] in ours))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert 20 < len(run.stdout.split()) <= 50, run.stdout
