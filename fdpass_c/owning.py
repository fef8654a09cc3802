"""Base classes of the objects that own descriptors."""

from typing import NoReturn, TypeVar

_Owner = TypeVar("_Owner", bound="Closing")


class NotCopied:
    """Refuses to be copied and pickled: a copy would close the same descriptors a second time."""

    __slots__ = ()

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError(
            f"cannot copy or pickle a {type(self).__name__}: both would own the same descriptors; "
            "send descriptors over a Channel, or copy one with os.dup"
        )


class Closing(NotCopied):
    """Can be closed, and is a context manager that does so."""

    __slots__ = ()

    def close(self) -> None:
        """Closes what it owns."""
        raise NotImplementedError

    def __enter__(self: _Owner) -> _Owner:
        """Returns the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Calls close()."""
        self.close()
