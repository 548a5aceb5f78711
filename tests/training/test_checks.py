import pytest

from tfllmrec.config import ExperimentConfig
from tfllmrec.data.schema import Field, Schema
from tfllmrec.errors import ConfigError
from tfllmrec.training.checks import check_fields


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({}, None),
        ({"model": {"scene": "weekday"}, "evaluation": {"by": ["request.weekday"]}}, None),
        ({"model": {"scene": None}, "item_weights": {"context": {"weekday": 1}}}, None),
        ({"item_weights": {"context": {"shop": 1}}}, r"item_weights.context: expected categories .*, found 'shop'\."),
        ({"model": {"scene": "weekdays"}}, r"model.scene: .*weekday.*, found 'weekdays' \(nearest: 'weekday'\)"),
        ({"model": {"scene": "hour"}}, r"model.scene: .* found 'hour'"),  # a number
        ({"evaluation": {"by": ["request.weekday", "gender"]}}, r"by: .*user.gender.*'gender' \(nearest: 'user.gen"),
        ({"evaluation": {"by": ["user.age"]}}, r"by: .* found 'user.age'"),
    ],
)
def test_settings_name_fields_that_the_data_has(settings, refused):
    schema = Schema(
        (
            Field("weekday", "request", "category"),
            Field("hour", "request", "number"),
            Field("gender", "user", "category"),
            Field("age", "user", "number"),
        )
    )
    config = ExperimentConfig.model_validate(settings)
    if refused is None:
        check_fields(schema, config)
    else:
        with pytest.raises(ConfigError, match=refused):
            check_fields(schema, config)
