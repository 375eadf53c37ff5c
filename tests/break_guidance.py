"""Seed one bug after the other into what is done with advice and into runs that go on, as break_students.py does.

`python tests/break_guidance.py` prints a line a bug and ends with 1 if a bug survived.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.break_students import Bug, main

GUIDANCE = "tutors/guidance/"

BUGS = [
    Bug(
        "override does what the student proposed",
        f"{GUIDANCE}override.py",
        "torch.where(heard.heeded, heard.advised.argmax(1), proposal.action)",
        "torch.where(heard.heeded, proposal.action, proposal.action)",
        "guidance",
    ),
    Bug(
        "the corrected policy learns from the tutor's actions alone",
        f"{GUIDANCE}override.py",
        '"own": ~heard.heeded',
        '"own": heard.heeded',
        "guidance",
    ),
    Bug(
        "the tutor's actions shift the corrected policy's advantages",
        "agents/on_policy.py",
        "(own * advantages).mean()",
        "advantages.mean()",
        "guidance",
    ),
    Bug(
        "the fewer actions are the student's own, the less they count",
        "agents/on_policy.py",
        "own * advantages / share",
        "own * advantages",
        "guidance",
    ),
    Bug(
        "the next moment is judged without its hint where there is a clock",
        "agents/on_policy.py",
        "torch.where(flags[0] | flags[1], kept.next_values, next_values)",
        "kept.next_values",
        "guidance",
    ),
    Bug(
        "DQN aims at the next moment without its hint",
        "agents/dqn.py",
        "guidance.see(batch.next_extras)",
        "None",
        "guidance",
    ),
    Bug("distillation uphill", f"{GUIDANCE}distill.py", "return -(advised", "return (advised", "guidance"),
    Bug(
        "distillation without its strength",
        f"{GUIDANCE}distill.py",
        "return self.strength * self.distance",
        "return self.distance",
        "guidance",
    ),
    Bug(
        "the divergence the other way round",
        f"{GUIDANCE}distill.py",
        "apart = log_probs.exp() * (log_probs - self.doubted(advised, legal).clamp(min=1e-30).log())",
        "apart = advised * (advised.clamp(min=1e-30).log() - log_probs)",
        "guidance",
    ),
    Bug(
        "the soft value without the tutor",
        f"{GUIDANCE}distill.py",
        "weighed = self.doubted(advised, legal)",
        "weighed = (legal / legal.sum(1, keepdim=True))",
        "guidance",
    ),
    Bug(
        "the next moment may be another game's",
        "agents/replay.py",
        "follows, following = alive & (first",
        "follows, following = (first",
        "replay",
    ),
    Bug(
        "the divergence is felt without advice",
        f"{GUIDANCE}distill.py",
        " * (advised.sum(1) > 0)",
        "",
        "guidance",
    ),
    Bug("a tutor in doubt weighs more", f"{GUIDANCE}blend.py", "(1 - uncertainty(", "(uncertainty(", "guidance"),
    Bug(
        "the blend acts, the student's own policy is learned",
        f"{GUIDANCE}blend.py",
        "return torch.where(given, mixed.clamp(min=1e-30).log(), log_probs)",
        "return log_probs",
        "guidance",
    ),
    Bug("the mask lies on all moments", f"{GUIDANCE}mask.py", "(luck[:, -1] < self.strength)", "True", "guidance"),
    Bug(
        "a hint where none is heeded",
        f"{GUIDANCE}hint.py",
        "heard.heeded[:, None].float()",
        "torch.ones_like(heard.advised[:, :1])",
        "guidance",
    ),
    Bug(
        "the first decision stands after a hint",
        "train.py",
        "choice = Choice(proposal.action, proposal.scores, choice.extras)",
        "Choice(proposal.action, proposal.scores, choice.extras)",
        "guidance",
    ),
    Bug(
        "who is told something has other luck",
        "agents/on_policy.py",
        "self.luck.draw(self.steps - 1,",
        "self.luck.draw(self.steps - (besides is None) * 1,",
        "guidance",
    ),
    Bug(
        "what is told is not learned from",
        "agents/ppo.py",
        "network(batch.obs, guidance.see(batch.extras))",
        "network(batch.obs)",
        "guidance",
    ),
    Bug("approval is not paid back", f"{GUIDANCE}shape.py", " - self.potential\n", "\n", "guidance"),
    Bug("approval lives on after death", f"{GUIDANCE}shape.py", " * ~after.terminated", "", "guidance"),
    Bug("approval passes to the next game", f"{GUIDANCE}shape.py", " * ~after.truncated", "", "guidance"),
    Bug("approval is not discounted", f"{GUIDANCE}shape.py", "self.gamma * there", "there", "guidance"),
    Bug(
        "the shaped reward is not learned from",
        "train.py",
        "choice.action, felt, choice.extras",
        "choice.action, after, choice.extras",
        "guidance",
    ),
    Bug("the advantage is always raised", f"{GUIDANCE}advantage.py", " - 1 / legal.sum(1)", "", "guidance"),
    Bug("a demonstration without a margin", f"{GUIDANCE}demonstrate.py", "+ MARGIN * others", "", "guidance"),
    Bug(
        "moments without a demonstration count",
        f"{GUIDANCE}demonstrate.py",
        " * (shown != NOBODY)",
        "",
        "guidance",
    ),
    Bug(
        "modulation leads everywhere that it was heard",
        f"{GUIDANCE}modulate.py",
        "heard.heeded & (luck[:, -1] < self.strength)",
        "heard.heeded",
        "pause",
    ),
    Bug(
        "modulation pays without fading",
        f"{GUIDANCE}modulate.py",
        "self.strength * self.reward_scale",
        "self.reward_scale",
        "pause",
    ),
    Bug(
        "modulation pays for what was proposed",
        f"{GUIDANCE}modulate.py",
        "taken(heard.advised, action)",
        "taken(heard.advised, proposal.action)",
        "pause",
    ),
    Bug(
        "preferences are fitted upside down",
        f"{GUIDANCE}preferences.py",
        "totals[first] - totals[second], wanted",
        "totals[second] - totals[first], wanted",
        "pause",
    ),
    Bug(
        "the best games are read",
        "pause.py",
        "totals.argsort(stable=True)",
        "totals.argsort(stable=True, descending=True)",
        "pause",
    ),
    Bug("the first steps are read", "pause.py", "first = max(length - LAST, 0)", "first = 0", "pause"),
    Bug(
        "findings keep the name of the board as it lies",
        "tutors/episodes.py",
        "[turned].gather(1, actions",
        "[turned * 0].gather(1, actions",
        "analyst",
    ),
    Bug("a mistake is rewarded", "pause.py", "worth[done] = one.reward\n", "worth[done] = -one.reward\n", "pause"),
    Bug(
        "any step that is named exists",
        "tutors/analyst.py",
        "not 1 <= step <= len(episode.actions)",
        "not 1 <= step",
        "analyst",
    ),
    Bug(
        "steps are counted from 0",
        "tutors/analyst.py",
        "found.setdefault(step - 1, Finding(step - 1,",
        "found.setdefault(step, Finding(step,",
        "analyst",
    ),
    Bug(
        "an illegal action may be better",
        "tutors/analyst.py",
        "or not legal[step - 1, view.labels.index(action)]",
        "",
        "analyst",
    ),
    Bug(
        "games are asked about once",
        "tutors/analyst.py",
        "for attempt in range(self.tries):",
        "for attempt in range(1):",
        "analyst",
    ),
    Bug("the schema is not sent", "tutors/dialects.py", "if wanted.schema else {}", "if False else {}", "analyst"),
    Bug(
        "a run that goes on deals afresh",
        "resume.py",
        "self.step = self.env.now()",
        "self.step = self.env.reset()",
        "resume",
    ),
    Bug(
        "a run that goes on forgets what was counted",
        "resume.py",
        'for name in PARTS if goes_on else ("agent", "env")',
        'for name in ("agent", "env")',
        "resume",
    ),
    Bug("replay is not saved", "agents/dqn.py", 'self.replay.load_state_dict(state["replay"])', "pass", "resume"),
    Bug("Adam's steps begin anew", "agents/optimizer.py", "tensor.copy_(state[name])", "pass", "resume"),
    Bug("the table is not saved", "tutors/desk.py", 'self.table.load_state_dict(state["table"])', "pass", "resume"),
    Bug("a budget begins anew", "resume.py", 'self.rations.left.copy_(state["rations"])', "pass", "resume"),
    Bug("the consult probability begins anew", "resume.py", 'self.acted.copy_(state["acted"])', "pass", "resume"),
    Bug(
        "what is no number is saved", "resume.py", "        self.check(stats)\n        began", "        began", "resume"
    ),
    Bug("the log keeps what was after the checkpoint", "log.py", "if int(line[0]) <= resumed", "", "resume"),
    Bug("TensorBoard keeps it", "log.py", "resumed + 1)", "resumed + 10**9)", "resume"),
    Bug(
        "a checkpoint is whole without its mark",
        "agents/checkpoint.py",
        'folder.glob("*.sha256")',
        '[mark_of(one) for one in folder.glob("*.pt")]',
        "checkpoint",
    ),
    Bug(
        "a damaged checkpoint is taken",
        "agents/checkpoint.py",
        "if not is_sound(folder / name)",
        "if False",
        "checkpoint",
    ),
    Bug(
        "the mark comes first",
        "agents/checkpoint.py",
        '    write(path, content.getbuffer())\n    write(mark_of(path), f"{digest}  {path.name}\\n".encode())\n',
        '    write(mark_of(path), f"{digest}  {path.name}\\n".encode())\n    write(path, content.getbuffer())\n',
        "checkpoint",
    ),
]

if __name__ == "__main__":
    sys.exit(main(BUGS, sys.argv[1:]))
