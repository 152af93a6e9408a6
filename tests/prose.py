"""Check the English of documents and code: length, long sentences, unclear phrases, dead links. Run by check.sh."""

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

from markdown_it import MarkdownIt

REPOSITORY = Path(__file__).resolve().parents[1]
PHRASES = re.compile(
    r"\bwhat (?!if\b)|\b(?:that|those) of\b|\bthose (?:that|which|who)\b|\bwhose\b|\bis (?:said|told)\b|\bbeside\b|\banew\b|\bfor want of\b",
    re.IGNORECASE,
)
README_LINES, README_WORDS, DOCS_WORDS, LONG, MOST_LONG, MOST_PHRASES = 150, 1100, 4500, 30, 0.05, 0.5


def paragraphs(path: Path) -> list[str]:
    """The text of paragraphs, table cells and list items, without code."""
    tokens = MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8"))
    inline = [token for token in tokens if token.type == "inline"]
    return ["".join(c.content or " " for c in token.children or () if c.type != "code_inline") for token in inline]


def links(path: Path) -> list[str]:
    """Targets of links."""
    tokens = MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8"))
    children = [child for token in tokens for child in token.children or () if child.type == "link_open"]
    return [str(child.attrs["href"]) for child in children]


def code_text(path: Path) -> str:
    """Comments and strings of a Python file."""
    source = io.StringIO(path.read_text(encoding="utf-8"))
    kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1))
    return "\n".join(token.string for token in tokenize.generate_tokens(source.readline) if token.type in kinds)


def main() -> int:
    names = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    files = [REPOSITORY / name for name in names.splitlines()]
    documents = [path for path in files if path.suffix == ".md"]
    pages = [path for path in documents if path.parent.name == "docs"]
    readme, problems = REPOSITORY / "README.md", []
    text = readme.read_text(encoding="utf-8")
    for found, most, unit in (
        (len(text.splitlines()), README_LINES, "lines"),
        (len(text.split()), README_WORDS, "words"),
    ):
        problems += [f"README.md has {found} {unit}, at most {most}"] if found > most else []
    n_words = sum(len(path.read_text(encoding="utf-8").split()) for path in pages)
    problems += [f"docs/ has {n_words} words, at most {DOCS_WORDS}"] if n_words > DOCS_WORDS else []
    sentences = [
        s for path in (readme, *pages) for p in paragraphs(path) for s in re.split(r"(?<=[.!?:;]) ", p) if s.split()
    ]
    long = [sentence for sentence in sentences if len(sentence.split()) > LONG]
    problems += long if len(long) > MOST_LONG * len(sentences) else []
    prose = {path: " ".join(paragraphs(path)) for path in documents}
    prose |= {path: code_text(path) for path in files if path.suffix == ".py"}
    hits = [(path, match) for path, text in prose.items() for match in PHRASES.finditer(text)]
    rate = 1000 * len(hits) / sum(len(text.split()) for text in prose.values())
    if rate > MOST_PHRASES:
        problems += [f"{p.relative_to(REPOSITORY)}: ...{m.string[m.start() : m.end() + 40]!r}" for p, m in hits]
    for path in documents:
        targets = [target.split("#")[0] for target in links(path) if "://" not in target]
        problems += [f"{path.name}: dead link {t}" for t in targets if t and not (path.parent / t).exists()]
    print(*problems, sep="\n")
    print(f"{len(long)} of {len(sentences)} sentences over {LONG} words; {rate:.2f} unclear phrases in 1,000 words")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
