"""`{{ ... }}` in job files: Jinja's language, strict, sandboxed and metered. The only importer of jinja2.

An expansion reaches nothing but the names that it is given. What it may cost is metered, see
apsislib.meter, at each call, filter, test, operator and turn of a loop.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment, SandboxedFormatter
from jinja2.utils import generate_lorem_ipsum, missing, object_type_repr, pass_context
from jinja2.visitor import NodeTransformer

from apsislib import dates, meter
from apsislib.errors import FieldError
from apsislib.meter import ITEM, SIZE, STEP, Meter

TOKENS = 3_000  # in a template, text between marks counting one: compiling takes 20 us each
LEVELS = 10  # of loops, macros and the like inside each other; Python's compiler allows 20

HINT_COMMENT = '"{#" begins a template comment; put ${#...} of the shell between {% raw %} and {% endraw %}'
HINT_STRING = "args are strings: convert with Date(x) or x | int"


# -- the door --------------------------------------------------------------------------------------


def has_template(text: str) -> bool:
    """Is there a template mark in `text`?"""
    return "{{" in text or "{%" in text or "{#" in text


def names(
    args: Mapping[str, Any], run_id: str | None, job_id: str, get_calendar: Callable[[str], Any]
) -> dict[str, Any]:
    """What a template of a run can name. An arg hides anything else of its name.

    `get_calendar` gives a calendars.Calendar; templates see a dates.Calendar.
    """
    return {
        **_NAMES,
        "get_calendar": lambda name: dates.Calendar(get_calendar(str(name))),
        "run_id": run_id,
        "job_id": job_id,
        **args,
    }


_NAMES: Mapping[str, Any] = {
    "Date": dates.Date,
    "Daytime": dates.Daytime,
    "Time": dates.Time,
    "TimeZone": dates.TimeZone,
    "to_local": dates.to_local,
    "from_local": dates.from_local,
    "format": meter.format_value,
}


def expand(text: str, names: Mapping[str, Any]) -> str:
    """`text` with its templates expanded. Raises FieldError, whose message is one line.

    As in Jinja, one line end at the end of the text is dropped and every other one becomes "\\n".
    """
    if not has_template(text):
        return unmarked(text)
    template = _compiled(text)
    try:
        parts = []
        size = 0
        for part in template.root_render_func(template.new_context(dict(names))):
            parts.append(part)
            size += len(part)
            if size > SIZE:
                raise FieldError(f"the template expands to more than {SIZE} characters")
        return "".join(parts)
    except Exception as error:  # a template is somebody else's program: it may raise anything
        message = _message(error)
    # Outside, so that the error does not hold on to what the template had made.
    raise FieldError(message)


def check_syntax(text: str) -> None:
    """Raises FieldError where `text` could not be expanded whatever its names mean."""
    if has_template(text):
        _compiled(text)


def unmarked(text: str) -> str:
    """What a text without a template mark expands to."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.removesuffix("\n")


def _compiled(text: str) -> jinja2.Template:
    if len(text) > SIZE:
        raise FieldError(f"the template is longer than {SIZE} characters")
    if text.count("{") > TOKENS and sum(map(text.count, ("{{", "{%", "{#"))) > TOKENS:
        raise _too_many_tokens()
    return _compiled_short(text) if len(text) <= 4_096 else _compiled_long(text)


def _compile(text: str) -> jinja2.Template:
    try:
        tree = _ENVIRONMENT.parse(text)
        meters = _Meters()
        for node in tree.body:
            if isinstance(node, nodes.Output):  # not in a body: text between expressions comes once
                node.nodes = [n if isinstance(n, nodes.TemplateData) else meters.visit(n) for n in node.nodes]
        tree.body = [n if isinstance(n, nodes.Output) else meters.visit(n) for n in tree.body]
        return _ENVIRONMENT.from_string(tree)
    except Exception as error:  # Jinja's parser and Python's compiler, on somebody else's text
        message = _message(error)
    raise FieldError(message)


# Two caches, so that a few huge scripts can't fill the memory: about 10 MB each when full.
_compiled_short = lru_cache(maxsize=2_048)(_compile)
_compiled_long = lru_cache(maxsize=32)(_compile)


def _message(error: Exception) -> str:
    """What the author of the template needs to know, on one line."""
    if isinstance(error, FieldError):
        return error.message
    if isinstance(error, RecursionError):
        return "the template is nested too deeply, or calls itself without end"
    text = " ".join(str(error)[:1_000].split()).removesuffix(".") or type(error).__name__
    if len(text) > 300:
        text = text[:300] + "..."
    if "end of comment tag" in text:
        text += f" ({HINT_COMMENT})"
    elif isinstance(error, TypeError) and "str" in text and "int" in text:
        text += f" ({HINT_STRING})"
    line = _line(error)
    return f"{text} (line {line} of the template)" if line > 1 else text


def _line(error: Exception) -> int:
    """The line of the template where `error` arose, from 1; 0 where that is not known."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    line = 0
    trace = error.__traceback__
    while trace is not None:
        template = trace.tb_frame.f_globals.get("__jinja_template__")
        if isinstance(template, jinja2.Template):
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line


# -- metered ---------------------------------------------------------------------------------------


class _Context(Context):
    """A context with a meter, which contexts derived from it share."""

    meter: Meter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.meter = Meter()

    def derived(self, locals: dict[str, Any] | None = None) -> Context:
        context = super().derived(locals)
        assert isinstance(context, _Context)
        context.meter = self.meter
        return context


def _metered(
    name: str,
    plain: Callable[..., Any],
    factor: int,
    sizes: Mapping[str, meter.Cost],
    works: Mapping[str, meter.Cost],
) -> Callable[..., Any]:
    """The filter or test `plain`, paying for what it reads and makes; a list instead of a generator."""
    wants = getattr(plain, "jinja_pass_arg", None)
    wanted = wants.name if wants is not None else ""

    @pass_context
    def metered(context: _Context, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        paid = context.meter
        paid.spend(STEP)
        paid.weigh(value, factor)
        for arg in args:
            paid.weigh(arg)
        for arg in kwargs.values():
            paid.weigh(arg)
        paid.reserve(meter.cost(sizes, name, value, *args, **kwargs))
        paid.spend(meter.cost(works, name, value, *args, **kwargs))
        if not wanted:
            result = plain(value, *args, **kwargs)
        elif wanted == "context":
            result = plain(context, value, *args, **kwargs)
        elif wanted == "eval_context":
            result = plain(context.eval_ctx, value, *args, **kwargs)
        else:
            result = plain(context.environment, value, *args, **kwargs)
        if isinstance(result, Iterator):
            return paid.listed(result)
        paid.weigh(result)
        return result

    return metered  # type: ignore[no-any-return, unused-ignore]


@pass_context
def _weigh(context: _Context, value: Any) -> Any:
    context.meter.weigh(value)
    return value


@pass_context
def _spend(context: _Context, value: Any, work: int) -> Any:
    context.meter.spend(work)
    return value


@pass_context
def _haystack(context: _Context, value: Any) -> Any:
    # A search may read a text many times.
    context.meter.weigh(value, 8 if isinstance(value, str) else 1)
    return value


@pass_context
def _finalize(context: _Context, value: Any) -> Any:
    context.meter.spend(STEP)
    context.meter.weigh(value)
    return value


class _Meters(NodeTransformer):
    """Puts the meter into a template's tree where Jinja has no hook for it."""

    def __init__(self) -> None:
        self._level = 0

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data)  # unlike plain data, a constant passes _finalize

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if isinstance(node.test, nodes.Expr):  # a filter, run once for each item
            node.test = _filter(node.test, " spend", STEP + _work(node.test))
        return self._body(node)

    def _body(self, node: Any) -> nodes.Node:
        """A body that may run again and again pays for each of its nodes each time."""
        if self._level == LEVELS:
            raise FieldError(f"the template has more than {LEVELS} loops or blocks inside each other")
        work = STEP + sum(map(_work, node.body))
        self._level += 1
        self.generic_visit(node)
        self._level -= 1
        node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(None), " spend", work)))
        return node  # type: ignore[no-any-return]

    visit_Macro = visit_CallBlock = visit_FilterBlock = visit_AssignBlock = visit_With = _body

    def _made(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":  # the left side of an assignment
            return node
        return _filter(node, " weigh")

    visit_List = visit_Tuple = visit_Dict = _made

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        if not isinstance(node.arg, nodes.Slice):
            self.generic_visit(node)
            return node
        made = self._made(node)
        # Python warns of a slice of a constant; of a call it can't know.
        node.node = _filter(node.node, " weigh")
        return made

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filter(part, " weigh") for part in node.nodes]
        return _filter(node, " weigh")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filter(node.expr, " weigh")
        for operand in node.ops:
            operand.expr = _filter(operand.expr, " haystack" if operand.op in ("in", "notin") else " weigh")
        return node

    def _refused(self, node: nodes.Node) -> nodes.Node:
        raise FieldError("a template can't include, import or extend another, and has no blocks")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = visit_Block = _refused


def _filter(node: nodes.Expr, name: str, *args: int) -> nodes.Filter:
    return nodes.Filter(node, name, [nodes.Const(a) for a in args], [], None, None, lineno=node.lineno)


def _work(node: nodes.Node) -> int:
    """What running the tree at `node` once costs, beyond what its operations pay themselves."""
    own = STEP if isinstance(node, nodes.Getattr | nodes.Getitem | nodes.NSRef) else 2
    return own + sum(map(_work, node.iter_child_nodes()))


# -- sandboxed -------------------------------------------------------------------------------------

_DATE_ATTRIBUTES = frozenset(
    ("year", "month", "day", "weekday", "ordinal", "week", "week_year", "ymdi", "datenum", "std")
)

# Types whose attributes reach further than a template needs, with those that it does.
_ALLOWED: tuple[tuple[type, frozenset[str]], ...] = (
    (int, frozenset(("name", "value", "real", "imag", "numerator", "denominator", "bit_length"))),
    (float, frozenset(("real", "imag", "is_integer", "hex", "as_integer_ratio"))),
    (bytes, frozenset(("decode", "hex"))),
    (
        datetime.date,  # and datetime; not `today` and `now`, which would differ at each expansion
        frozenset(("year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo", "replace"))
        | frozenset(("weekday", "isoweekday", "isocalendar", "isoformat", "strftime", "toordinal"))
        | frozenset(("timestamp", "date", "time", "utcoffset", "tzname", "astimezone")),
    ),
    (datetime.tzinfo, frozenset(("key", "tzname", "utcoffset", "dst"))),
    (type(len), frozenset()),  # functions of C
    (type(_filter), frozenset()),  # and of Python
    (type(_Meters().visit), frozenset()),
)


@lru_cache(maxsize=256)
def _allowed(kind: type) -> frozenset[str] | None:
    return next((allowed for base, allowed in _ALLOWED if issubclass(kind, base)), None)


class _Unknown(jinja2.StrictUndefined):
    """What an unknown name or attribute gives: using it is an error; `default` and `is defined` work."""

    __slots__ = ()

    def __repr__(self) -> str:  # in a list, say
        self._fail_with_undefined_error()

    @property
    def _undefined_message(self) -> str:
        if self._undefined_hint:
            return self._undefined_hint
        name, obj = self._undefined_name, self._undefined_obj
        if obj is missing:
            return f"name {name!r} is not defined"
        hint = (
            f" (a string: write Date(x).{name})" if isinstance(obj, str) and name in _DATE_ATTRIBUTES else ""
        )
        return f"{object_type_repr(obj)} has no attribute or item {name!r}{hint}"


class _Format:
    """`text.format`, metered."""

    def __init__(self, text: str, mapping: bool) -> None:
        self._text = text
        self._mapping = mapping

    @pass_context
    def __call__(self, context: _Context, *args: Any, **kwargs: Any) -> str:
        if self._mapping:
            (values,) = args
            return _Formatter(context).vformat(self._text, (), values)
        return _Formatter(context).vformat(self._text, args, kwargs)


class _Formatter(SandboxedFormatter):
    def __init__(self, context: _Context) -> None:
        super().__init__(context.environment)
        self._meter = context.meter
        self._size = 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._meter.weigh(value)  # it may be reached through an index or attribute
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        self._meter.spend(STEP)
        text = meter.format_value(value, format_spec)
        self._size += self._meter.weigh(text)
        if self._size > SIZE:
            raise meter.too_big()
        return text


def _range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > SIZE // ITEM:
        raise meter.too_big()
    return numbers


@pass_context
def _lipsum(context: _Context, n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    if n * max > 5_000:
        raise meter.too_big()
    context.meter.spend(10 * n * max)  # 1 us a word
    return generate_lorem_ipsum(n, html, min, max)


class _Tokens(Extension):
    """Refuses a template that would take long to compile."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        for number, token in enumerate(stream):
            if number >= TOKENS:
                raise _too_many_tokens()
            if token.type == "integer":
                meter.check_int(token.value)  # type: ignore[arg-type]  # Jinja calls it a str
            yield token


def _too_many_tokens() -> FieldError:
    return FieldError(f"the template has more than {TOKENS} tokens")


class _Environment(SandboxedEnvironment):
    context_class = _Context
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr.startswith("_") or not super().is_safe_attribute(obj, attr, value):
            return False
        if isinstance(obj, str):
            return attr not in ("translate", "maketrans")
        if isinstance(obj, type):
            return attr.startswith("from_")
        allowed = _allowed(type(obj))  # type: ignore[arg-type]  # classes are hashable
        return allowed is None or attr in allowed

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and getattr(value, "__name__", "") in ("format", "format_map"):
            return _Format(owner, value.__name__ == "format_map")
        return None

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902
        assert isinstance(__context, _Context)
        given = kwargs
        if "_loop_vars" in kwargs or "_block_vars" in kwargs:  # Jinja's own
            given = {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}
        meter.before_call(__context.meter, __obj, args, given)
        result = super().call(__context, __obj, *args, **kwargs)
        __context.meter.weigh(result)
        return result

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(" "):  # `map` calls filters by name
            raise jinja2.TemplateRuntimeError(f"No filter named {name!r}")
        return super().call_filter(name, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        assert isinstance(context, _Context)
        meter.before_operator(context.meter, operator, left, right)
        result = self.binop_table[operator](left, right)
        context.meter.weigh(result)
        return result


def _environment() -> _Environment:
    env = _Environment(undefined=_Unknown, finalize=_finalize, optimized=False, extensions=[_Tokens])
    filters: dict[str, Any] = env.filters
    tests: dict[str, Any] = env.tests
    for name, plain in filters.items():
        factor = 16 if name in meter.SLOW_FILTERS else 2
        filters[name] = _metered(name, plain, factor, meter.FILTER_SIZES, meter.FILTER_WORK)
    for name, plain in tests.items():
        tests[name] = _metered(name, plain, 1, {}, meter.TEST_WORK)
    # The blank: no template can name these, see also call_filter.
    env.filters.update({" weigh": _weigh, " spend": _spend, " haystack": _haystack})
    env.globals.update({"range": _range, "lipsum": _lipsum})
    return env


_ENVIRONMENT = _environment()  # never changed once made
