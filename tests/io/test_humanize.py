import pytest

from research.io.humanize import (
    flops_text,
    format_bytes,
    format_duration,
    quantity,
    significant,
)


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (quantity, 14_000, "14k"),
        (quantity, 999_500, "1M"),
        (quantity, 3.5e14, "350T"),
        (quantity, 2e15, "2e15"),
        (quantity, float("nan"), "nan"),
        (flops_text, 1.0000544e11, "1e11"),
        (flops_text, 2.41379e21, "2.41e21"),
        (flops_text, 0, "0"),
        (flops_text, float("inf"), "inf"),
        (significant, 1.26, "1.260"),
        (significant, 2900.2, "2900"),
        (significant, 0.0, "0"),
        (format_bytes, 0, "0 B"),
        (format_bytes, 999, "999 B"),
        (format_bytes, 1024, "1.02 kB"),
        (format_bytes, 80e9, "80 GB"),
        (format_bytes, 2.5e15, "2.5e+03 TB"),
        (format_duration, 119, "119 s"),
        (format_duration, 120, "2 min"),
        (format_duration, 7199, "120 min"),
        (format_duration, 7200, "2.0 h"),
    ],
)
def test_numbers_are_written_for_people(write, value, text):
    assert write(value) == text
