"""YAML from anywhere: plain data, at a price that goes with its length."""

import pytest
import yaml

from metaleak.deploy.config.plain_yaml import parse_yaml


def test_plain_data_is_read_as_it_was_written():
    plain = {
        "numbers": [0, -3, 31, 1.5, 1e-5, 1e300, float("inf")],
        "texts": ["1:30", "2020-01-01", "010", "1e-3", "", "yes", "null", "12e4567", "a\nb"],
        "others": [None, True, False, {"a": {}}, []],
        3: "a key that is a number",
    }
    assert parse_yaml(yaml.safe_dump(plain)) == plain


@pytest.mark.parametrize(
    ("text", "value"), [("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("0x1F", 31), ("1_000", 1000), ("", None)]
)
def test_base_60_and_dates_stay_text(text, value):
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "'a' stands there twice"),
        ("m: {x: 1, x: 1}", "'x' stands there twice"),
        ("a: &x 1\nb: *x", "aliases are not allowed"),
        ("!!python/object:os.system x", "tags are not allowed"),
        ("!!int '1:30:30'", "tags are not allowed"),
        ("9" * 41, "at most 40 characters"),
        ("1" * 100_000 + ".5", "at most 40 characters"),
        ('"\\e[31mred": 1', "control characters"),
        ('a: "\\u009b31m"', "control characters"),
        ('"\\ud800"', "control characters"),
        ("? [1]\n: 2", "a key must be"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_plain_or_costs_much_is_refused(text, said):
    with pytest.raises(yaml.YAMLError) as caught:
        parse_yaml(text)
    assert said in str(caught.value)
