"""Types that the sections of a configuration are made of, and what every section has in common."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
)


def _day(value: object) -> date:
    """A day from YAML; pydantic alone would read the number 0 as 1970-01-01."""
    try:
        if isinstance(value, str):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise ValueError("must be a day such as 2019-05-25")


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("must not name anything twice")
    return values


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError("must be odd, so that there is a middle")
    return size


PositiveInt = Annotated[int, Strict(), Field(gt=0)]
Odd = Annotated[PositiveInt, AfterValidator(_odd)]
Share = Annotated[float, Field(gt=0, lt=1)]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Bands = Annotated[Names, AfterValidator(distinct)]
Day = Annotated[date, BeforeValidator(_day)]


class Section(BaseModel):
    """A frozen node of the configuration that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DaysSection(Section):
    """From the first to the last day, both included."""

    start: Day
    end: Day

    @field_validator("end")
    @classmethod
    def _not_reversed(cls, end: date, info: ValidationInfo) -> date:
        start = info.data.get("start")
        if start is not None and end < start:
            raise ValueError(f"must not be earlier than start ({start})")
        return end
