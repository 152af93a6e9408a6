"""The table of where CLIPs come from: what a backbone may be named, on command lines and in configs."""

from trainers.modules.backbone_source import Source
from trainers.modules.hf_source import HuggingFace
from trainers.modules.open_clip_source import OpenClip
from trainers.modules.openai_source import OpenAI

# The first whose prefix a name has; that without one comes last.
SOURCES: tuple[Source, ...] = (OpenClip(), HuggingFace(), OpenAI())


def source_of(name: str) -> Source:
    """The source that a backbone's name is one of."""
    return next(source for source in SOURCES if name.startswith(source.prefix))
