"""CachedPrompts: which slots hold the keys and values of which prompt, for others to copy."""

from __future__ import annotations

from collections.abc import Collection


class CachedPrompts:
    """Prompts whose keys and values, those of the last token excepted, lie in slots.

    A slot keeps its prompt after its sequence has ended, until another sequence takes the slot.
    """

    def __init__(self, num_slots: int) -> None:
        self._prompts: list[tuple[int, ...] | None] = [None] * num_slots
        self._slots: dict[tuple[int, ...], dict[int, None]] = {}  # slots in the order in which they were set

    def __getitem__(self, slot: int) -> tuple[int, ...] | None:
        """The prompt that a slot holds."""
        return self._prompts[slot]

    def __setitem__(self, slot: int, prompt: tuple[int, ...] | None) -> None:
        """Note that a slot now holds a prompt, or none."""
        previous = self._prompts[slot]
        if previous is not None:
            slots = self._slots[previous]
            del slots[slot]
            if not slots:
                del self._slots[previous]
        self._prompts[slot] = prompt
        if prompt is not None:
            self._slots.setdefault(prompt, {})[slot] = None

    def slots_of(self, prompt: tuple[int, ...]) -> Collection[int]:
        """The slots that hold a prompt, the one that has held it longest first; a view, looked up in O(1)."""
        return self._slots.get(prompt, {}).keys()
