"""predictions.csv."""

from hypothesis import given, settings
from hypothesis import strategies as st

from common.image_results import read_predictions, write_predictions


@settings(max_examples=40)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "path": st.text(min_size=1),
                "domain": st.text(min_size=1),
                "label": st.text(),
                "prediction": st.text(),
                "confidence": st.integers(0, 10**4).map(lambda n: n / 10**4),
            }
        ),
        max_size=4,
    )
)
def test_predictions_come_back_as_they_were(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("predictions")
    write_predictions(folder, rows)
    assert read_predictions(folder / "predictions.csv") == rows
