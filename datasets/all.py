"""Imports every data set, which registers them."""

import datasets.benchmarks
import datasets.folder
import datasets.mini_digits  # noqa: F401
