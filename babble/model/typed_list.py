"""A ModuleList whose items have a known type, so that nothing that uses them has to cast."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

Item = TypeVar("Item", bound=nn.Module)


class TypedModuleList(nn.ModuleList, Generic[Item]):
    """Modules of one type; at runtime `nn.ModuleList` itself."""

    if TYPE_CHECKING:

        def __init__(self, modules: Iterable[Item]) -> None:
            """Take the modules."""

        def __iter__(self) -> Iterator[Item]:
            """Yield them in order."""
