"""A person plays in the terminal: Connect Four against the student, other games beside it."""

from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.text import Text

from agents import Agent
from envs.base import Env, State, Step
from envs.connect4 import Connect4, lines_of_four
from envs.rendering import DRAWINGS, Drawing
from tutors.advisor import Advisor
from tutors.terminal import TerminalConsole

OUTCOMES = {1: "you win", 0: "a draw", -1: "the student wins"}
COLORS = {"x": "bold bright_blue", "o": "bold yellow", "@": "bold bright_blue", "*": "bold yellow"}
LEAVE = "Enter or q leaves."
RULES = {
    "connect4": "x are your discs, o the student's; four in a line win. Type a column, 1 to 7.",
    "snake": "@ is your head, * the fruit. Type up, right, down or left, or u, r, d or l.",
    "blackjack": "Come closer to 21 than the dealer. Type stick or hit, or s or h.",
}


def play_in_terminal(agent: Agent, env: Env, advisor: Advisor | None, read: Callable[[str], str] = input) -> None:
    """Play episodes of an env of one copy; an empty line, q or Ctrl-D ends it. With an advisor, show its advice.

    In Connect Four the student is the env's opponent; in other games it says what it would do.
    """
    console, drawing = TerminalConsole(), DRAWINGS[env.spec.name]
    console.print(f"{env.spec.shown_title()}. {RULES.get(env.spec.name, 'Type an action.')} {LEAVE}", markup=False)
    step = env.reset()
    while (finished := play_episode(console, drawing, agent, env, step, advisor, read)) is not None:
        if not answer("another game (y), or leave (Enter): ", read).startswith("y"):
            return
        step = finished.as_initial()


def play_episode(
    console: Console,
    drawing: Drawing,
    agent: Agent,
    env: Env,
    step: Step,
    advisor: Advisor | None,
    read: Callable[[str], str],
) -> Step | None:
    """Play one episode, and return the step that ended it, or None where the person leaves."""
    names, is_match = names_of(drawing, env), isinstance(env.game, Connect4)
    states, value = [step.state], 0.0
    if is_match and (opening := reply_of({"theirs": torch.zeros(1, dtype=torch.int64)}, step.state)):
        console.print(f"the student begins: {opening}")
    while True:
        show_board(console, drawing, env, states)
        if advisor is not None:
            console.print(advice_line(advisor, step.state, names), markup=False)
        action = read_action(step.action_mask[0], names, read)
        if action is None:
            return None
        own = int(agent.greedy(step.obs, step.action_mask)[0])
        step = env.step(torch.tensor([action], device=env.device))
        value += float(step.reward[0])
        states.append(step.final_state)
        if is_match:
            reply = reply_of(states[-2], states[-1])
            console.print(f"\nyou: {names[action]}" + (f"   student: {reply}" if reply else ""))
        else:
            same = "too" if own == action else names[own]
            console.print(f"\nyou: {names[action]}   the student would: {same}")
        if step.terminated | step.truncated:
            show_board(console, drawing, env, states)
            outcome = drawing.outcome(value).replace("the student wins", "you win")
            console.print(OUTCOMES[int(value)] if is_match else outcome)
            return step


def names_of(drawing: Drawing, env: Env) -> tuple[str, ...]:
    """Return what the actions are called."""
    return drawing.actions or tuple(map(str, range(env.spec.num_actions)))


def show_board(console: Console, drawing: Drawing, env: Env, states: Sequence[State]) -> None:
    """Print a position, each side in a colour of its own, the discs of a line of four reversed."""
    board = drawing.text(env.spec, states).split("\n\n")[0]
    text = Text(board)
    if env.spec.name in ("connect4", "snake"):
        for at, sign in enumerate(board):
            if sign in COLORS:
                text.stylize(COLORS[sign], at, at + 1)
    if isinstance(env.game, Connect4):
        for side in ("mine", "theirs"):
            for row, column in cells_of(int(lines_of_four(states[-1][side])[0])):
                at = row * 14 + 2 * column  # seven signs with a space or the line's end behind each
                text.stylize("reverse", at, at + 1)
                if not console.is_terminal:
                    text = Text.assemble(text[:at], board[at].upper(), text[at + 1 :])
    console.print()
    console.print(text)
    if isinstance(env.game, Connect4):
        console.print(f"{' '.join(drawing.actions)}   you are x, student o")


def cells_of(cells: int) -> list[tuple[int, int]]:
    """Return the row from the top and the column of each cell of a board."""
    return [(5 - bit % 7, bit // 7) for bit in range(49) if cells >> bit & 1]


def reply_of(before: State, after: State) -> str:
    """Return the column, from 1, into which the opponent has dropped a disc; empty if it has not."""
    new = int(after["theirs"][0]) & ~int(before["theirs"][0])
    return str((new.bit_length() - 1) // 7 + 1) if new else ""


def advice_line(advisor: Advisor, state: State, names: Sequence[str]) -> str:
    """Return the tutor's advice in a line: actions with at least 1 %."""
    advice = advisor.advise(state, torch.ones(1, dtype=torch.bool))
    if not advice.valid[0]:
        return "tutor: no advice"
    shares = sorted(zip(advice.probs[0].tolist(), names, strict=True), key=lambda one: -one[0])
    return "tutor: " + "  ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.01)


def read_action(action_mask: torch.Tensor, names: Sequence[str], read: Callable[[str], str]) -> int | None:
    """Return the action that a person names, in full or by its beginning, or None to quit; ask again otherwise."""
    legal = [action for action, is_legal in enumerate(action_mask.tolist()) if is_legal]
    is_column = names == tuple("1234567")
    known = ", ".join(names[action] for action in legal)
    while True:
        text = answer("column: " if is_column else f"{known}: ", read)
        if text in ("", "q"):
            return None
        found = [action for action in legal if names[action].startswith(text)]
        if len(found) == 1:
            return found[0]
        print(f"enter {'a column that is not full, 1 to 7' if is_column else known}, or q to quit")


def answer(question: str, read: Callable[[str], str]) -> str:
    """Return what a person types; nothing at the end of the input."""
    try:
        return read(question).strip().lower()
    except EOFError:  # Ctrl-D
        return ""
