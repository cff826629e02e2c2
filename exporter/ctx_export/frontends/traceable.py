"""What PyTorch cannot trace without weights or not translate, computed in other words.

`x[..., [-2], :]` makes the list a tensor on the device of x; on the meta device it holds nothing.
Keys of one head are broadcast over the queries' heads by PyTorch's attention, which its exporter
takes only where they are said to be grouped.
"""

from __future__ import annotations

from typing import Any


def traceable() -> Any:
    """A context in which both are computed in words that PyTorch's exporter understands."""
    import torch
    from torch.overrides import TorchFunctionMode

    class _Traceable(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            options = dict(kwargs or {})
            if function is torch.Tensor.__getitem__:
                args = (args[0], without_list(args[1]))
            if function is torch.nn.functional.scaled_dot_product_attention:
                options |= _grouped(*args[:2]) if len(args) > 1 else {}
            return function(*args, **options)

    return _Traceable()


def _grouped(query: Any, key: Any) -> dict[str, bool]:
    return {"enable_gqa": True} if key.shape[1] == 1 != query.shape[1] else {}


def without_list(index: Any) -> Any:
    """`index` with a list of one number as a slice; several of them index together and stay."""
    parts = index if isinstance(index, tuple) else (index,)
    lists = [place for place, part in enumerate(parts) if isinstance(part, list)]
    if len(lists) != 1 or not _is_one_number(parts[lists[0]]):
        return index
    [number], place = parts[lists[0]], lists[0]
    one = slice(number, None if number == -1 else number + 1)
    return (*parts[:place], one, *parts[place + 1 :])


def _is_one_number(part: list[Any]) -> bool:
    return len(part) == 1 and isinstance(part[0], int) and not isinstance(part[0], bool)
