"""Imports every data set, which registers them. A CoOp checkout has its own datasets/__init__.py."""

import datasets.benchmarks
import datasets.folder
import datasets.mini_digits  # noqa: F401
