"""The server of archives for all tests of downloads."""

from download_site import drive, expect, pacs, run, server  # noqa: F401 (fixtures)
