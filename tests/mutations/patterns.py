"""Find and replace pieces of a program by its syntax tree, so that formatting and comments do not matter.

A pattern is an expression or some statements. A name that begins with ANY stands for any expression, and in the
replacement for what it stood for.
"""

import ast
import copy
from typing import Any

WILDCARD = "ANY"


def replace(source: str, scope: str, pattern: str, replacement: str) -> str:
    """Return the source with the one match of a pattern in a function, a class or the module ("") replaced.

    Raises:
        ValueError: there is no such function or class, or the pattern matches not once.
    """
    module = ast.parse(source)
    before, after = parse(pattern), parse(replacement)
    if isinstance(before, list) != isinstance(after, list):  # then the expression is a statement of its own
        before, after = (ast.parse(text).body for text in (pattern, replacement))
    places = find(find_scope(module, scope), before)
    if len(places) != 1:
        raise ValueError(f"{pattern!r} matches {len(places)} times in {scope or 'the module'}")
    (place,) = places
    place.put(filled(after, place.bound))
    return ast.unparse(ast.fix_missing_locations(module)) + "\n"


def parse(text: str) -> ast.expr | list[ast.stmt]:
    """Return an expression, or statements."""
    body = ast.parse(text).body
    return body[0].value if len(body) == 1 and isinstance(body[0], ast.Expr) else body


def find_scope(module: ast.Module, name: str) -> ast.AST:
    """Return a function or class by its qualified name, as "PPO.update"."""
    scope: ast.AST = module
    for part in name.split(".") if name else ():
        found = [
            node
            for node in ast.iter_child_nodes(scope)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == part
        ]
        if len(found) != 1:
            raise ValueError(f"there are {len(found)} of {part} in {name}")
        scope = found[0]
    return scope


class Place:
    """Where a pattern matches: a field of a node, an item of a list, or some items in a row."""

    def __init__(self, owner: Any, field: str, first: int | None, length: int, bound: dict[str, ast.expr]) -> None:
        self.owner = owner
        self.field = field
        self.first = first
        self.length = length
        self.bound = bound

    def put(self, new: Any) -> None:
        """Replace what is there."""
        if self.first is None:
            setattr(self.owner, self.field, new)
        else:
            items = new if isinstance(new, list) else [new]
            getattr(self.owner, self.field)[self.first : self.first + self.length] = items


def find(scope: ast.AST, pattern: ast.expr | list[ast.stmt]) -> list[Place]:
    """Return all matches below a node."""
    places = []
    for owner in ast.walk(scope):
        for field, value in ast.iter_fields(owner):
            if isinstance(pattern, list) and isinstance(value, list):
                for first in range(len(value) - len(pattern) + 1):
                    bound: dict[str, ast.expr] = {}
                    if matches(pattern, value[first : first + len(pattern)], bound):
                        places.append(Place(owner, field, first, len(pattern), bound))
            elif isinstance(pattern, ast.expr):
                items = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
                for first, item in items:
                    bound = {}
                    if isinstance(item, ast.expr) and matches(pattern, item, bound):
                        places.append(Place(owner, field, first, 1, bound))
    return places


def matches(pattern: Any, value: Any, bound: dict[str, ast.expr]) -> bool:
    """Return whether two trees are equal but for wildcards, which are bound to what they stand for."""
    if isinstance(pattern, ast.Name) and pattern.id.startswith(WILDCARD):
        if not isinstance(value, ast.expr):
            return False
        return ast.dump(bound.setdefault(pattern.id, value)) == ast.dump(value)
    if type(pattern) is not type(value):
        return False
    if isinstance(pattern, ast.AST):
        return all(matches(getattr(pattern, name, None), getattr(value, name, None), bound) for name in pattern._fields)
    if isinstance(pattern, list):
        return len(pattern) == len(value) and all(matches(*pair, bound) for pair in zip(pattern, value, strict=True))
    return bool(pattern == value)


def filled(tree: Any, bound: dict[str, ast.expr]) -> Any:
    """Return a copy of a replacement in which wildcards are what they stand for."""
    if isinstance(tree, list):
        return [filled(item, bound) for item in tree]

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return copy.deepcopy(bound[node.id]) if node.id.startswith(WILDCARD) else node

    return Fill().visit(copy.deepcopy(tree))
