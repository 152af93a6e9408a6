"""Records with a checksum."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from common.run.records import read_record, write_record

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@settings(max_examples=60)
@given(record=st.dictionaries(st.text().filter(lambda key: key != "checksum"), JSON, max_size=5))
def test_records_come_back_as_they_were(tmp_path_factory, record):
    path = tmp_path_factory.mktemp("record") / "r.json"
    write_record(path, record)
    assert read_record(path) == json.loads(json.dumps(record))
