"""Base classes of the objects that own descriptors."""

from typing import NoReturn, TypeVar

# No bound="Closing": typing would compile that text, which takes long at the import.
_Owner = TypeVar("_Owner")

PASS_ON = "send descriptors over a Channel, or copy one with os.dup"
"""What to do instead of copying the owner of what was received."""


class NotCopied:
    """Refuses to be copied and pickled: a copy would close the same descriptors a second time."""

    __slots__ = ()

    _instead = "pass a socket, and make a {} of it there"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        kind = type(self).__name__
        raise TypeError(
            f"cannot copy or pickle a {kind}: both would own the same descriptors; "
            + self._instead.format(kind)
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
