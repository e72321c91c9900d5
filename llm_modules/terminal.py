"""`llm-modules chat`: questions, answers and commands, until the user leaves."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from llm_modules.chat import Conversation, Sampling
from llm_modules.errors import UserError
from llm_modules.loading import source_of
from llm_modules.settings import nearest_key
from llm_modules.shared_reading import SharedReading
from llm_modules.shown import Screen
from llm_modules.speakers import Speaker, load_speakers
from llm_modules.typed import Read, reader

COMMANDS = {
    "/model": ("[NAME]", "list who can answer, or choose; the conversation goes on"),
    "/compare": ("QUESTION", "let all answer, side by side; the conversation stays as it was"),
    "/system": ("[TEXT]", "set the system message; without a text, take it away"),
    "/params": ("[NAME=VALUE …]", "show how answers are drawn, or change it"),
    "/save": ("[FILE]", "add the conversation to a JSONL file to train on (chat.jsonl)"),
    "/reset": ("", "forget the conversation"),
    "/help": ("", "this"),
    "/exit": ("", "leave; so does Ctrl-D"),
}
HINT = "/help lists the commands, /exit leaves; Ctrl-C stops an answer."
KEYS = "Enter sends; Alt-Enter, or Enter after a backslash, begins a new line; arrows go through what was asked before."


def chat(folders: Sequence[Path], sampling: Sampling, *, system: str | None = None) -> None:
    """Load models that share a source, and talk in the terminal, or answer the lines of a pipe.

    Raises:
        UserError: If one cannot be loaded, or reads another source.
    """
    answers = Console()
    screen = Screen(answers, remarks=answers if answers.is_terminal else Console(stderr=True))
    disable_progress_bar()  # of transformers, which would write over ours
    with screen.remarks.status("loading") as status:
        speakers = load_speakers(folders, echo=status.update)
    torch.manual_seed(sampling.seed)
    first = next(iter(speakers.values()))
    source = source_of(speaker.model for speaker in speakers.values())
    shared = None if source is None else SharedReading(source)
    conversation = Conversation(first.model, first.tokenizer, sampling, system, shared=shared)
    completions = dict.fromkeys(COMMANDS) | {"/model": dict.fromkeys(speakers)}
    Talk(conversation, speakers=speakers, screen=screen).go(reader(completions))


@dataclass
class Talk:
    """A conversation in a terminal.

    Args:
        conversation: With the first who speaks.
        speakers: Who can answer, by name; the first is that of the conversation.
        screen: Where answers go.
    """

    conversation: Conversation
    speakers: dict[str, Speaker]
    screen: Screen

    def __post_init__(self) -> None:
        self.speaking = next(iter(self.speakers))

    def go(self, read: Read) -> None:
        """Answer what is read until it ends, or `/exit`."""
        self.screen.remark(f"{self._who()}\n{HINT}")
        while True:
            try:
                line = read(f"\n{self.speaking}> ").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self.screen.remark(HINT)
                continue
            if line == "/exit":
                return
            try:
                self._answer(line)
            except UserError as error:
                self.screen.remark(f"error: {error}", "red")
            except KeyboardInterrupt:
                self.screen.remark("(stopped)")

    def _answer(self, line: str) -> None:
        if not line.startswith("/"):
            if line:
                self._ask(line)
            return
        command, _, rest = line.partition(" ")
        if command in COMMANDS:
            getattr(self, f"_{command[1:]}")(rest.strip())
        else:
            raise UserError(f"{command} is no command; the nearest is {nearest_key(command, list(COMMANDS))}")

    def _ask(self, question: str) -> None:
        self.screen.stream(self.conversation.ask(question))
        self.screen.remark(str(self.conversation.pace or "nothing was written"))

    def _model(self, name: str) -> None:
        if name:
            if name not in self.speakers:
                raise UserError(f"{name!r} is not here; choose one of: {', '.join(self.speakers)}")
            self.speaking = name
            self.conversation.model, self.conversation.tokenizer = (
                self.speakers[name].model,
                self.speakers[name].tokenizer,
            )
        self.screen.remark(self._who())

    def _compare(self, question: str) -> None:
        if not question:
            raise UserError("there is nothing to compare; write /compare QUESTION")
        told = {name: self._told_to(speaker) for name, speaker in self.speakers.items()}
        failed: dict[str, str] = {}

        def guarded(name: str) -> Generator[str, None, None]:
            try:
                yield from told[name].ask(question)
            except UserError as error:
                failed[name] = f"error: {error}"

        self.screen.beside(
            {name: guarded(name) for name in told},
            remark=lambda name: failed.get(name) or str(told[name].pace or "nothing was written"),
        )

    def _told_to(self, speaker: Speaker) -> Conversation:
        """The same conversation, which goes on with another; what it says is kept apart."""
        return replace(self.conversation, model=speaker.model, tokenizer=speaker.tokenizer)

    def _system(self, text: str) -> None:
        self.conversation.system = text or None
        self.screen.remark("(system message set)" if text else "(no system message)")

    def _params(self, assignments: str) -> None:
        before = self.conversation.sampling
        self.conversation.sampling = before.changed(assignments.split())
        if any(each.startswith("seed=") for each in assignments.split()):
            torch.manual_seed(self.conversation.sampling.seed)
        self.screen.remark(str(self.conversation.sampling))
        if self.conversation.system:
            self.screen.remark(f"system: {self.conversation.system}")

    def _save(self, file: str) -> None:
        path = Path(file or "chat.jsonl").expanduser()
        self.conversation.save(path)
        self.screen.remark(f"(added to {path})")

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self.screen.remark("(forgotten)")

    def _help(self, _: str) -> None:
        for command, (arguments, meaning) in COMMANDS.items():
            self.screen.remark(f"{f'{command} {arguments}':24}{meaning}")
        self.screen.remark(KEYS)

    def _who(self) -> str:
        marked = (f"{name} (answers)" if name == self.speaking else name for name in self.speakers)
        return f"Here: {', '.join(marked)}."
