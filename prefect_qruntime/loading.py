"""Load a saved block by its name, with an error that says what is wrong and repeats no secret."""

from __future__ import annotations

from typing import TypeVar, cast

from prefect.blocks.core import Block
from pydantic import ValidationError

from prefect_qruntime.errors import InvalidInput

__all__ = ["load_saved"]

B = TypeVar("B", bound=Block)


async def load_saved(kind: type[B], name: str, *, field: str, cure: str) -> B:
    """Load a saved block of a type.

    Args:
        kind: The block's class.
        name: The block's name.
        field: What gave the name.
        cure: Said where no block has the name.

    Returns:
        The block.

    Raises:
        InvalidInput: No block has the name, or a field of it is wrong.
    """
    title = kind._block_type_name
    try:
        return cast(B, await kind.aload(name))
    except InvalidInput as error:
        wrong = error.message
    except ValidationError as error:
        wrong = _fields(error)
    except RuntimeError as error:  # Prefect's word for a document that its class refuses
        if not isinstance(error.__cause__, ValidationError):
            raise
        wrong = _fields(error.__cause__)
    except ValueError as error:
        raise InvalidInput(f"no {title} block is named {name!r}; {cure}", field=field) from error
    # Without its cause, which would show the values.
    raise InvalidInput(
        f"the {title} block {name!r} has a wrong field ({wrong}); correct it in the UI under Blocks, or see "
        "`prefect-qruntime doctor`",
        field=field,
    ) from None


def _fields(error: ValidationError) -> str:
    found = [f"{'.'.join(map(str, one['loc'])) or 'the whole'}: {one['msg']}" for one in error.errors()]
    return "; ".join(found)
