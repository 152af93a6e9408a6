"""Check the English of documents and code: length, long sentences, unclear phrases, dead links. check.sh runs it."""

import re
import subprocess
import sys
import tokenize
from pathlib import Path

from markdown_it import MarkdownIt

REPOSITORY = Path(__file__).resolve().parents[1]
PHRASES = re.compile(
    r"\b(what (?!if\b)|(that|those) of\b|those (that|which|who)\b|whose\b|is (said|told)\b|beside\b|anew\b|for want\b)",
    re.IGNORECASE,
)
README_LINES, README_WORDS, DOCS_WORDS = 150, 1100, 4500
LONG, MOST_LONG = 30, 0.05  # words of a long sentence, accepted share of long sentences
MOST_PHRASES = 0.5  # in 1,000 words


def read_document(path: Path) -> tuple[list[str], list[str]]:
    """Paragraphs and table cells without code, and targets of links."""
    tokens = MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8"))
    parts = [token.children or [] for token in tokens if token.type == "inline"]
    texts = ["".join(part.content or " " for part in inline if part.type != "code_inline") for inline in parts]
    return texts, [str(part.attrs["href"]) for inline in parts for part in inline if part.type == "link_open"]


def read_code(path: Path) -> list[str]:
    """Comments and strings of a Python file."""
    kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    with tokenize.open(path) as file:
        return [token.string for token in tokenize.generate_tokens(file.readline) if token.type in kinds]


def main() -> int:
    names = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    documents = {name: read_document(REPOSITORY / name) for name in names.splitlines() if name.endswith(".md")}
    texts = {name: text for name, (text, _) in documents.items()}
    texts |= {name: read_code(REPOSITORY / name) for name in names.splitlines() if name.endswith(".py")}
    guide = [name for name in documents if name == "README.md" or name.startswith("docs/")]
    words = {name: len((REPOSITORY / name).read_text(encoding="utf-8").split()) for name in guide}
    limits = {
        "words of README.md": (words.pop("README.md"), README_WORDS),
        "words of docs/": (sum(words.values()), DOCS_WORDS),
    }
    limits["lines of README.md"] = (
        len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()),
        README_LINES,
    )
    sentences = [s for name in guide for text in texts[name] for s in re.split(r"(?<=[.!?:;]) ", text) if s]
    long = [sentence for sentence in sentences if len(sentence.split()) > LONG]
    limits["long sentences in README.md and docs/"] = len(long), MOST_LONG * len(sentences)
    hits = [(name, match) for name, parts in texts.items() for text in parts for match in PHRASES.finditer(text)]
    n_words = sum(len(text.split()) for parts in texts.values() for text in parts)
    limits["unclear phrases in 1,000 words"] = 1000 * len(hits) / n_words, MOST_PHRASES
    places = {
        name: [target.split("#")[0] for target in links if "://" not in target]
        for name, (_, links) in documents.items()
    }
    dead = [
        f"{name}: {to}"
        for name, targets in places.items()
        for to in targets
        if not (REPOSITORY / name).parent.joinpath(to).exists()
    ]
    limits["dead links"] = len(dead), 0
    problems = [title for title, (found, most) in limits.items() if found > most]
    print(*(f"{title}: {found:.4g} (at most {most:.4g})" for title, (found, most) in limits.items()), *dead, sep="\n")
    if problems:
        print(*long, *(f"{name}: {match.string[match.start() :][:60]!r}" for name, match in hits), sep="\n")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
