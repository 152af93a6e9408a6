"""Domain generalization data sets. Importing this package registers them with Dassl."""

import datasets.benchmarks
import datasets.folder
import datasets.mini_digits  # noqa: F401
