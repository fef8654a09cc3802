"""What must arrive: the messages of one direction, in order, once, whole."""

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Sequence

import fdpass_c
from support.descriptors import identities, open_unique, repeat
from support.messages import Message, take_batch

tried: Counter[str] = Counter()
"""What was tried."""

_numbers = itertools.count()


def take_at_most(most: int, batch: fdpass_c.Batch) -> list[Message]:
    """What the messages of a batch are; fails if they are more than were asked for."""
    messages = take_batch(batch)
    assert len(messages) <= most
    return messages


class Files:
    """The descriptors that messages carry, no two the same."""

    def __init__(self) -> None:
        self.fds = open_unique(5)

    def message(self, size: int, count: int) -> tuple[bytes, list[int]]:
        """A payload like no other, where size allows it, and that many descriptors."""
        number = next(_numbers)
        payload = (b"%d " % number * (size // 4 + 1))[:size]
        return payload, repeat(self.fds[number % 5 :], count)


class Queue:
    """The messages that one end has sent, and the other has still to receive."""

    def __init__(self) -> None:
        # The second: which interrupted call sent it, or did not. None: it was sent.
        self._messages: deque[tuple[Message, object]] = deque()
        self.ended = False
        """Nothing more can come."""
        self.torn = False
        """It ends inside of a message, and what came with that may be lost."""

    def add(
        self, payloads: Iterable[bytes], rows: Iterable[Sequence[int]], doubt: object = None
    ) -> None:
        """doubt: names a call that has sent the first of these messages, nobody knows how many."""
        for payload, row in zip(payloads, rows, strict=True):
            self._messages.append(((payload, identities([*row])), doubt))

    @property
    def is_empty(self) -> bool:
        """Whether it may be that nothing comes."""
        return all(doubt is not None for _, doubt in self._messages)

    def end(self, torn: bool) -> None:
        if not self.ended:
            self.ended, self.torn = True, torn

    def take(self, got: Message) -> None:
        """Fails unless got is the message that has to be next."""
        while True:
            assert self._messages, f"nobody sent {got[0][:20]!r}, or it came twice"
            message, doubt = self._messages.popleft()
            if message == got:
                return
            assert doubt is not None, f"{message[0][:20]!r} has to come before {got[0][:20]!r}"
            while self._messages and self._messages[0][1] is doubt:
                self._messages.popleft()
