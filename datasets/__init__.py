"""Domain generalization data sets. Importing this package registers them with Dassl."""

import datasets.all  # noqa: F401
