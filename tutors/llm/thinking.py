"""Where a model's thinking begins and ends in a text: the markers that published chat templates and parsers use."""

import re

NAMES = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)"
OPENING = (
    rf"[<\[◁]\|?(?:begin_of_|start_)?{NAMES}\|?[>\]▷]"  # <think>, [THINK], ◁think▷, <|begin_of_thought|>
    r"|<\|channel\|>\s*(?:analysis|commentary)|<\|channel>\s*thought"  # gpt-oss; Gemma 4
    r"|<unused94>"  # MedGemma
)
CLOSING = rf"[<\[◁]\|?(?:/|end_of_|end_){NAMES}\|?[>\]▷]|<\|channel\|>\s*final|<channel\|>|<unused95>"
MARKER = re.compile(f"(?P<opening>{OPENING})|(?:{CLOSING})", re.IGNORECASE)


def outside_thinking(text: str, begun: bool = False) -> str | None:
    """Return what stands outside a text's thinking, None where the thinking does not end.

    A closing marker that nothing opened ends the thinking that the prompt began: what stands before it is dropped.

    Args:
        text: of a model.
        begun: whether the prompt begins the thinking.
    """
    outside: list[str] = []
    start = 0
    for marker in MARKER.finditer(text):
        if marker["opening"]:
            if not begun:
                outside.append(text[start : marker.start()])
            begun = True
        else:
            if not begun:
                outside.clear()
            begun = False
            start = marker.end()
    return None if begun else "".join(outside) + text[start:]


def begins_thinking(text: str) -> bool:
    """Return whether a text begins with thinking."""
    marker = MARKER.match(text.lstrip())
    return marker is not None and bool(marker["opening"])
