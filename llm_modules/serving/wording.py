"""From tokens to text as they come: nothing is sent that a later token could change, or that begins a stop."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase


class Wording:
    """The text of one answer.

    Args:
        tokenizer: Spells the tokens; special ones are left out.
        stop: Texts that end the answer; neither they nor what follows is part of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, stop
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._num_spelled = 0  # characters, held back or not
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self._tokens.append(token)
        piece = self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        self._num_spelled += len(piece)
        return self._certain(piece)

    def finish(self) -> str:
        """What was held back: no more tokens come."""
        if self.stopped:
            return ""
        whole = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        rest = self._certain(whole[self._num_spelled :])  # half a character, spelled as such
        held, self._held = self._held, ""
        return rest + ("" if self.stopped else held)

    def _certain(self, piece: str) -> str:
        text = self._held + piece
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
