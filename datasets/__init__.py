"""Domain generalization datasets. Importing this package registers them with Dassl."""

import datasets.all  # noqa: F401
