"""Download the published sets; only commands and launchers import this."""
