"""Run a chat template, which is a stranger's program, with bounded time and memory.

The environment means the same as the one in which transformers renders chat templates (trim_blocks, lstrip_blocks,
break and continue, `generation` blocks, `raise_exception`, `strftime_now`, `tojson` that escapes nothing), on top of
jinja's immutable sandbox, which keeps a template from Python's insides. What the sandbox leaves open is bounded here:
every turn of a loop, call and filter looks at the clock, every text it makes at its length. Filters and methods whose
result can be made as long as one likes by a number are not there.

A stand-in for a text (`Opaque`) may be passed on, joined and written, but whatever would look into it raises.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

from finesmith.errors import ModelError, shortened

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 3.0
MOST_CHARACTERS = 4_000_000
MOST_SOURCE = 200_000
_MOST_AT_ALL = 256_000_000
_LONGEST_INDENT = 64
_USUAL_SECONDS = 0.02
_USUAL_SECONDS_A_TURN = 0.0005
_FAILURES = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)

_FILTERS = frozenset(
    {"abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape"}
    | {"groupby", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject"}
    | {"rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "striptags"}
    | {"sum", "title", "trim", "unique", "upper", "wordcount"}
)
_PASSING_ON = frozenset({"d", "default", "string", "trim"})
_SEEING_DEEP = frozenset({"join", "sum", "tojson"})
_TEXT_METHODS = frozenset(
    {"capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdigit"}
    | {"islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix"}
    | {"removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines"}
    | {"startswith", "strip", "swapcase", "title", "upper"}
)


class TemplateRefusedError(ValueError):
    """A template did not render: it raised an exception of its own, made an error, or took too much."""


class TemplateSlowError(TemplateRefusedError):
    """A template took too long: it will with other conversations, too."""


class Opaque(str):
    """A text whose letters are not to be looked at: it stands for others, and may only be passed on and written."""

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return True


def opaque(text: str) -> Opaque:
    """Return a text in which nothing more may be looked at."""
    made: Opaque = _MIXED(text)
    return made


class ObservedError(Exception):
    """A template looked into a text that it was to pass on."""


def looked(*_: object, **__: object) -> Any:
    """Stand for a method by which a text could be looked into."""
    raise ObservedError


# Everything by which a program could find out what a text says.
LOOKING = (
    *(name for name in dir(str) if not name.startswith("_")),
    *("__contains__", "__eq__", "__format__", "__ge__", "__getitem__", "__gt__", "__hash__", "__iter__", "__le__"),
    *("__len__", "__lt__", "__mod__", "__mul__", "__ne__", "__repr__", "__rmod__", "__rmul__", "__add__"),
)
_MIXED = type("_Mixed", (Opaque,), dict.fromkeys(LOOKING, looked))


def _any_opaque(values: Any) -> bool:
    """Say whether a stand-in stands anywhere in plain values."""
    if isinstance(values, str):
        return isinstance(values, Opaque)
    if isinstance(values, Mapping):
        return any(map(_any_opaque, values.values()))
    return isinstance(values, list | tuple) and any(map(_any_opaque, values))


class _Budget:
    """The time that renderings may take, one and all together, and the characters and items one may make.

    Time is this thread's own, so that a busy machine makes no template slow.
    """

    def __init__(self) -> None:
        self.began = 0.0
        self.total = 0
        self.spent = 0.0
        self.allowed = 2 * SECONDS

    def start(self, turns: int) -> None:
        """Begin a rendering of so many turns."""
        self.began = time.thread_time()
        self.total = 0
        self.allowed += _USUAL_SECONDS + _USUAL_SECONDS_A_TURN * turns

    def stop(self) -> None:
        """Add the time of a rendering that is over."""
        self.spent += time.thread_time() - self.began
        if self.spent > self.allowed:
            raise TemplateSlowError(
                f"the chat template takes more than {_USUAL_SECONDS} seconds for a conversation and "
                f"{_USUAL_SECONDS_A_TURN} for each of its turns"
            )

    def tick(self) -> str:
        """Look at the clock; return nothing to write."""
        if time.thread_time() > self.began + SECONDS:
            raise TemplateSlowError(f"the chat template ran for more than {SECONDS:.0f} seconds")
        return ""

    def take(self, size: int) -> None:
        """Allow a text or a list of this size."""
        self.total += size
        if size > MOST_CHARACTERS or self.total > _MOST_AT_ALL:
            raise TemplateRefusedError(f"the chat template makes a text of more than {MOST_CHARACTERS:,} characters")

    def join(self, parts: Iterable[str]) -> str:
        """Join what a template or a part of one wrote."""
        texts = parts if isinstance(parts, list) else list(parts)
        self.take(sum(map(str.__len__, texts)))
        text = "".join(texts)
        return opaque(text) if any(isinstance(each, Opaque) for each in texts) else text

    def link(self, *values: Any) -> str:
        """Join values as the operator ~ does."""
        return self.join(list(map(str, values)))


def _size(value: Any) -> int:
    if isinstance(value, str):
        return str.__len__(value)
    return len(value) if isinstance(value, bytes | list | tuple) else 0


def compile_template(source: str) -> Callable[[Mapping[str, Any]], str]:
    """Return a function that renders a chat template from its variables.

    That function raises TemplateRefusedError when the template refuses the conversation, fails, or takes too much.

    Raises:
        ModelError: the source is no template, or uses what is not offered.
    """
    from jinja2 import TemplateError

    if len(source) > MOST_SOURCE:
        raise ModelError(f"the chat template has {len(source):,} characters, expected at most {MOST_SOURCE:,}")
    try:
        template, budget = _compiled(source)
    except (TemplateError, RecursionError, SyntaxError, MemoryError, ValueError) as error:
        said = shortened(str(error) or type(error).__name__, 200)
        raise ModelError(f"the chat template cannot be used: {said}; name one of finesmith's own instead") from error

    def render(variables: Mapping[str, Any]) -> str:
        budget.start(len(variables["messages"]))
        try:
            text = template.render(variables)
            budget.stop()
            return str.__str__(text)
        except TemplateRefusedError:
            raise
        except (TemplateError, *_FAILURES) as error:
            said = shortened(str(error) or type(error).__name__, 200)
            raise TemplateRefusedError(f"the chat template refuses it: {said}") from error

    return render


@lru_cache(maxsize=32)
def _compiled(source: str) -> tuple[Template, _Budget]:
    from jinja2 import Template, nodes
    from jinja2.visitor import NodeTransformer

    class Watching(NodeTransformer):
        """Puts a look at the clock into every loop and at the size into every `~`."""

        def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
            self.generic_visit(node)
            clock = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            node.body.insert(0, nodes.Output([clock]))
            return node

        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
            self.generic_visit(node)
            return nodes.Call(nodes.EnvironmentAttribute("link"), node.nodes, [], None, None)

    budget = _Budget()
    environment = _environment(budget)
    tree = Watching().visit(environment.parse(source))
    tree.set_environment(environment)
    nodes.Node.set_lineno(tree, 1)
    code = environment.compile(tree)
    return Template.from_code(environment, code, environment.make_globals(None)), budget


def _environment(budget: _Budget) -> ImmutableSandboxedEnvironment:
    from datetime import datetime

    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` blocks, which mark what the assistant writes: here they only write it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Bounded(ImmutableSandboxedEnvironment):
        """The sandbox, with a look at sizes and clock wherever something is made."""

        intercepted_binops = frozenset({"+", "*", "**", "%", "//", "-"})
        concat = staticmethod(budget.join)
        tick = staticmethod(budget.tick)
        link = staticmethod(budget.link)

        def wrap_str_format(self, value: Any) -> Any:
            if getattr(value, "__name__", "") in ("format", "format_map"):
                raise TemplateRefusedError("the chat template formats texts, which is not offered; join them with +")
            return None

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operands(operator, left, right, budget)
            if isinstance(left, Opaque) or isinstance(right, Opaque):
                if operator != "+" or not (isinstance(left, str) and isinstance(right, str)):
                    raise ObservedError
                return opaque(str.__add__(left, right))
            return super().call_binop(context, operator, left, right)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, str | bytes) and attr not in _TEXT_METHODS:
                return False
            return bool(super().is_safe_attribute(obj, attr, value))

        def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            budget.tick()
            owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
            if isinstance(owner, Opaque):
                # The stand-in's own methods say which of them may be called.
                return __obj(*args, **kwargs)
            if isinstance(owner, str):
                if _any_opaque(args):
                    raise ObservedError
                _check_method(owner, name, args, budget)
            return super().call(__context, __obj, *args, **kwargs)

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    class Namespace(jinja2.utils.Namespace):
        """A namespace that stores no name with an underscore in front."""

        def __init__(*given: Any, **names: Any) -> None:
            self, *rest = given
            attributes = dict(*rest, **names)
            if any(str(name).startswith("_") for name in attributes):
                raise jinja2.exceptions.SecurityError("a namespace may not hold names that begin with _")
            jinja2.utils.Namespace.__init__(self, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise jinja2.exceptions.SecurityError("a namespace may not hold names that begin with _")
            super().__setitem__(name, value)

    environment.filters = {
        name: _watched(name, function, budget) for name, function in environment.filters.items() if name in _FILTERS
    }
    environment.filters["tojson"] = _watched("tojson", _to_json, budget)
    environment.filters["indent"] = _watched("indent", jinja2.filters.do_indent, budget)
    environment.globals = {
        "range": environment.globals["range"],
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        "namespace": Namespace,
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(shortened(str(form), 200)),
    }
    return environment


def _check_operands(operator: str, left: Any, right: Any, budget: _Budget) -> None:
    if operator == "+":
        budget.take(_size(left) + _size(right))
    elif operator == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | bytes | list | tuple) and isinstance(times, int):
                budget.take(len(many) * max(times, 0))
    elif operator == "%" and isinstance(left, str | bytes):
        raise TemplateRefusedError("the chat template formats with %, which is not offered; join texts with +")
    elif operator == "**" and not (abs(left) < 10_000 and abs(right) < 100):
        raise TemplateRefusedError("the chat template makes a number that is too large")
    if isinstance(left, int) and isinstance(right, int) and max(left.bit_length(), right.bit_length()) > 4096:
        raise TemplateRefusedError("the chat template makes a number that is too large")


def _check_method(owner: str, name: str, args: tuple[Any, ...], budget: _Budget) -> None:
    if name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        budget.take(len(owner) + (owner.count(args[0]) * len(args[1])))
    elif name == "join" and args:
        if not isinstance(args[0], list | tuple | str | dict):
            raise TemplateRefusedError("the chat template joins what is no list")
        items = list(args[0])
        budget.take(sum(map(_size, items)) + len(owner) * len(items))


def _watched(name: str, function: Callable[..., Any], budget: _Budget) -> Callable[..., Any]:
    """Return a filter that looks at the clock, at what it is given and at what it makes."""
    takes_context = hasattr(function, "jinja_pass_arg")

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        budget.tick()
        given = args[1:] if takes_context else args
        if (name in _SEEING_DEEP and _any_opaque(given)) or (
            name not in _PASSING_ON and any(isinstance(each, Opaque) for each in given)
        ):
            raise ObservedError
        if name == "replace" and len(given) >= 3:
            _check_method(str(given[0]), "replace", (str(given[1]), str(given[2])), budget)
        if name == "indent":
            width = kwargs.get("width", given[1] if len(given) > 1 else 4)
            if _size(width) > _LONGEST_INDENT or (isinstance(width, int) and width > _LONGEST_INDENT):
                raise TemplateRefusedError(f"the chat template indents by more than {_LONGEST_INDENT}")
        if name == "join":
            if isinstance(given[0], Opaque):
                raise ObservedError
            items = list(given[0])
            if _any_opaque(items):
                raise ObservedError
            budget.take(
                sum(map(_size, items)) + _size(kwargs.get("d", given[1] if len(given) > 1 else "")) * len(items)
            )
            args = (*args[: 1 if takes_context else 0], items, *given[1:])
        made = function(*args, **kwargs)
        budget.take(_size(made))
        return made

    return run


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON without escaping what HTML needs escaped."""
    if _size(indent) > _LONGEST_INDENT or (isinstance(indent, int) and indent > _LONGEST_INDENT):
        raise TemplateRefusedError(f"the chat template indents by more than {_LONGEST_INDENT}")
    if separators is not None and any(_size(each) > _LONGEST_INDENT for each in separators):
        raise TemplateRefusedError("the chat template writes JSON with separators that are too long")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
