"""Fixed prompts with {} for the class name."""

TEMPLATE = "a photo of a {}."
# The seven that CLIP's authors found to do nearly as well as all eighty, as in CoOp.
SELECTED_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
