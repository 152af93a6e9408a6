"""The parts: plain nn.Modules and functions with typed arguments, free of Dassl and of cfg."""

import warnings

# The clip package asks setuptools for `packaging` on import; its users can do nothing about the notice.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
