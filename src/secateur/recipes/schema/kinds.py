"""What a value of a recipe may be: types with their limits, and the words that say so.

pydantic reads them. Where it is missing (a borrowed machine) they say nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

try:
    from pydantic import Field as Field
except ImportError:  # the recipe is then taken at its word

    def Field(**limits: Any) -> Any:  # type: ignore[no-redef]  # noqa: N802
        """Nothing."""


Share = Annotated[float, Field(gt=0, le=1, description="a share above 0 and at most 1")]
Fraction = Annotated[float, Field(ge=0, lt=1, description="a number from 0 up to, not including, 1")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number of at least 0")]
Count = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
Whole = Annotated[int, Field(ge=0, description="a whole number of at least 0")]
Text = Annotated[str, Field(description="a text")]
Flag = Annotated[bool, Field(description="true or false")]
Words = Annotated[tuple[str, ...], Field(description="a list of texts")]
Quantity = Literal["macs", "params", "bytes", "memory", "latency"]
QUANTITIES: tuple[str, ...] = get_args(Quantity)
Keep = Annotated[dict[Quantity, Share], Field(min_length=1, description="what remains, as { macs = 0.5 }")]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description='"auto", "cpu", "cuda" or "mps"')]
Table = Annotated[dict[str, Any], Field(description="a table of arguments")]
Repairs = Literal[
    "batchnorm", "none", "mean_bias", "mean_bias+batchnorm", "compensation", "compensation+batchnorm", "least_squares",
    "least_squares+batchnorm", "whitened", "whitened+batchnorm", "distil", "batchnorm+distil", "compensation+distil",
    "least_squares+distil", "whitened+distil", "two_sided", "two_sided+distil",
]  # fmt: skip
Criterion = Literal[
    "random", "l1", "l2", "bn_scale", "fpgm", "taylor", "hrank", "chip", "rfp", "apoz", "thinet", "group_fisher", "obd", "lamp",
    "lasso", "cap", "elimination", "nisp", "flows", "loss_curves", "scoring_net", "snip", "grasp", "synflow",
    "three_sp",
]  # fmt: skip
