"""Networks, encoders and file formats: plain PyTorch with typed arguments, without Dassl and without a config."""

import warnings

# The clip package imports pkg_resources; its users can do nothing about the warning.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
