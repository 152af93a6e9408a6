"""Words and KEY VALUE pairs of a command line are told apart."""

from hypothesis import given, settings
from hypothesis import strategies as st

from common.config_keys import split_at_key


@settings(max_examples=60)
@given(words=st.lists(st.text(max_size=8), max_size=6))
def test_any_words_before_settings(words):
    before, opts = split_at_key(words)
    assert [*before, *opts] == words
