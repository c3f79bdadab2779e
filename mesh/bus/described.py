"""What a task type says of itself: its payload and its result as JSON schemas, read from its annotations.

The annotations also do something: on the agent the payload becomes what the function asks for (a pydantic model, a dataclass,
a `dict[str, int]` ...) or the task fails at once, and what it returns becomes JSON. A function without annotations is called
as it is. Plain `dict`, `list`, `str` ... need no library; pydantic is imported for the others, when they are first used.
"""

from __future__ import annotations

import inspect
import logging
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from mesh.core.schemas import trouble
from mesh.errors import Invalid

logger = logging.getLogger(__name__)
Convert = Callable[[Any], Any]
_SAYS_NOTHING = (inspect.Parameter.empty, Any, object, None, type(None))
_SAYS_NOTHING_TEXTS = frozenset({"Any", "typing.Any", "object", "None"})
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
#: Annotations that need no pydantic: (JSON's name, Python types of it).
_BARE: dict[Any, tuple[str, tuple[type, ...]]] = {
    dict: ("object", (dict,)),
    list: ("array", (list, tuple)),
    str: ("string", (str,)),
    bool: ("boolean", (bool,)),
    int: ("integer", (int,)),
    float: ("number", (float, int)),
}
_BARE_NAMES = {"object": "an object", "array": "an array", "integer": "an integer"}
_NOTHING_SCHEMA = {"type": "null"}


def wrong_payload(task_type: str, place: str, why: str, more: int = 0) -> Invalid:
    """The error for a payload that does not fit its type. `place`: such as `payload.pages[0]`; `more`: further faults."""
    others = f" (and {more} more)" if more else ""
    return Invalid(f"The payload of task {task_type} is wrong at {place}: {why}{others}.")


def place_of(path: Sequence[str | int]) -> str:
    """A place in a payload as people write it: `payload.pages[0].width`."""
    parts = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    return "payload" + "".join(parts)


class Described:
    """One task type: name, requirement, limits, and what its function takes and returns.

    `payload_schema` and `result_schema` (JSON Schema) take the place of what the annotations say: then the function gets the
    payload as it came, and checks it by itself.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        requires: Sequence[str],
        timeout_s: float | None,
        retries: Mapping[str, Any],
        examples: Sequence[Any],
        payload_schema: Mapping[str, Any] | None,
        result_schema: Mapping[str, Any] | None,
    ) -> None:
        self.name, self.function = name, function
        self._fixed = {
            "requires": list(requires),
            "timeout_s": timeout_s,
            **retries,
        }
        self._examples = examples
        self._payload_schema, self._result_schema = payload_schema, result_schema
        signature = inspect.signature(function)
        self._parameter = _payload_parameter(signature)
        self._takes_nothing = not signature.parameters
        self._reads = (
            payload_schema is None
            and self._parameter is not None
            and _says_something(self._parameter.annotation)
        )
        self._writes = result_schema is None and _says_something(signature.return_annotation)
        self.call: Callable[..., Any] = self._converted if self._reads or self._writes else function

    # -- what the registry is told

    def row(self) -> dict[str, Any]:
        """JSON values for the registry.

        A model whose schema `trouble` refuses, for example one that contains itself, is not advertised: its payloads are checked
        by the agent alone. Raises `Invalid` for annotations that say nothing about JSON, and for a given schema that is refused.
        """
        schema = self._shown_payload_schema()
        why = "" if schema is None else trouble(schema)
        if why and self._payload_schema is not None:
            raise Invalid(f"The payload_schema of task type {self.name} is not used, since it {why}.")
        if why:
            logger.warning(
                "the schema of the payload of task type %s is not advertised, since it %s: payloads are checked by agents only",
                self.name,
                why,
            )
            schema = None
        return {
            **self._fixed,
            "description": (inspect.getdoc(self.function) or "").partition("\n")[0].strip(),
            "payload_schema": schema,
            "result_schema": self._result_schema if self._result_schema is not None else self._result[0],
            "examples": [self._checked_example(example) for example in self._examples],
        }

    def _shown_payload_schema(self) -> Mapping[str, Any] | None:
        if self._payload_schema is not None:
            return self._payload_schema
        if self._takes_nothing:
            return _NOTHING_SCHEMA
        schema = self._payload[0]
        optional = self._parameter is not None and self._parameter.default is not inspect.Parameter.empty
        if schema is None or not optional:
            return schema
        definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
        plain = {key: value for key, value in schema.items() if key != "$defs"}
        return {"anyOf": [plain, _NOTHING_SCHEMA], **definitions}  # without a payload its default is used

    def _checked_example(self, example: Any) -> Any:
        """An example as JSON; pydantic models and dataclasses are taken as well."""
        try:
            self._payload[1](example)
        except Invalid as error:
            raise Invalid(f"An example of task type {self.name} does not fit it. {error}") from None
        return self._payload[2](example)

    # -- what is done with a call

    def _converted(self, *args: Any, **kwargs: Any) -> Any:
        if self._reads:
            args, kwargs = self._read(args, kwargs)
        result = self.function(*args, **kwargs)
        return self._result[2](result) if self._writes else result

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        parameter, read = self._parameter, self._payload[1]
        assert parameter is not None
        if args:
            return (read(args[0]), *args[1:]), kwargs
        if parameter.name in kwargs:
            return args, {**kwargs, parameter.name: read(kwargs[parameter.name])}
        if parameter.default is inspect.Parameter.empty:
            return (read(None),), kwargs
        return args, kwargs

    # -- (schema, from JSON, to JSON) of both, made when first needed

    @cached_property
    def _hints(self) -> dict[str, Any]:
        try:
            return typing.get_type_hints(self.function, include_extras=True)
        except Exception as error:  # whatever evaluating somebody's annotations raises
            raise Invalid(
                f"The annotations of task type {self.name} cannot be read: {error}. What they name must be there when the "
                "module has been loaded (not for type checkers only)."
            ) from error

    @cached_property
    def _payload(self) -> tuple[dict[str, Any] | None, Convert, Convert]:
        if not self._reads or self._parameter is None:
            return None, _as_it_is, _as_it_is
        return self._of(self._hints.get(self._parameter.name, Any), "payload")

    @cached_property
    def _result(self) -> tuple[dict[str, Any] | None, Convert, Convert]:
        return (
            self._of(self._hints.get("return", Any), "result")
            if self._writes
            else (None, _as_it_is, _as_it_is)
        )

    def _of(self, annotation: Any, what: str) -> tuple[dict[str, Any] | None, Convert, Convert]:
        if not _says_something(annotation):
            return None, _as_it_is, _as_it_is
        bare = _BARE.get(_bare(annotation))
        if bare is not None:
            return {"type": bare[0]}, lambda value: self._bare(value, *bare), _as_it_is
        return self._by_pydantic(annotation, what)

    def _bare(self, value: Any, name: str, kinds: tuple[type, ...]) -> Any:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise wrong_payload(
                self.name, "payload", f"{_BARE_NAMES.get(name, f'a {name}')} is expected, not {_shown(value)}"
            )
        return value

    def _by_pydantic(self, annotation: Any, what: str) -> tuple[dict[str, Any], Convert, Convert]:
        import pydantic
        import pydantic_core

        try:
            adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
            schema = adapter.json_schema(mode="validation" if what == "payload" else "serialization")
        except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticSchemaGenerationError) as error:
            raise Invalid(
                f"The {what} of task type {self.name} is annotated with {_named(annotation)}, which JSON cannot say: use "
                "a pydantic model, a dataclass or plain types, or no annotation."
            ) from error

        def read(value: Any) -> Any:
            try:
                return adapter.validate_python(value)
            except pydantic.ValidationError as error:
                first, *others = error.errors(include_url=False, include_context=False, include_input=False)
                raise wrong_payload(self.name, place_of(first["loc"]), first["msg"], len(others)) from None

        def write(value: Any) -> Any:
            try:
                return adapter.dump_python(value, mode="json", by_alias=True, warnings="none")
            except pydantic_core.PydanticSerializationError as error:
                raise Invalid(
                    f"The {what} of task {self.name} cannot be written as JSON: {error}."
                ) from error

        return schema, read, write


def _payload_parameter(signature: inspect.Signature) -> inspect.Parameter | None:
    """The parameter that takes the payload; None if there is none, or if callers have to give several arguments."""
    parameters = list(signature.parameters.values())
    if not parameters or parameters[0].kind not in _POSITIONAL:
        return None
    several = any(one.default is one.empty and one.kind not in _REST for one in parameters[1:])
    return None if several else parameters[0]


def _says_something(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.strip() not in _SAYS_NOTHING_TEXTS
    return not any(annotation is nothing for nothing in _SAYS_NOTHING)


def _bare(annotation: Any) -> Any:
    """`dict` for `dict[str, Any]` and `list` for `list[Any]`: their items may be anything; else the annotation."""
    if isinstance(annotation, types.GenericAlias) and annotation.__args__ in ((str, Any), (Any,)):
        return annotation.__origin__
    try:
        hash(annotation)
    except TypeError:  # Annotated[...] with a list or dict in it
        return None
    return annotation


def _as_it_is(value: Any) -> Any:
    return value


def _named(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or repr(annotation)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
