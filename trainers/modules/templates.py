"""Fixed prompts with {} for the class name."""

TEMPLATE = "a photo of a {}."
# The seven that CLIP's authors found to do nearly as well as all eighty, as in CoOp.
SELECTED_TEMPLATES = (
    *("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}."),
    *("a {} in a video game.", "art of the {}.", "a photo of the small {}."),
)


def imagenet_templates(n: int) -> list[str]:
    """The first n templates of CLIP's authors for ImageNet."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES[:n]]
