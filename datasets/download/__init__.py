"""Getting the published sets: where from, transfers, archives, and into place; only commands and launchers use it."""
