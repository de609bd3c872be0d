"""One binding's translation: path, query, body and Idempotency-Key → request message; response message → JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from gateway_http.codec.decoder import ME, DecodeErrors, EncoderRegistry, MessageDecoder, decoder_of
from gateway_http.codec.encoder import PROTOBUF, SNAKE_CASE, Encoders, Spelling
from gateway_http.codec.field_values import Malformed, read_id
from gateway_http.codec.query import decode_text, parse_query, read_query
from gateway_http.codec.strict_json import parse_object
from gateway_http.router import Binding
from services.platform.rpc import errors
from services.platform.rpc.contract import Method

# The field that the header `Idempotency-Key` fills, where a request has it.
IDEMPOTENCY_KEY = "idempotency_key"
# Parameters that clients of page numbers send, where a method's policy admits them.
PAGE, SORT = "page", "sort"
SORT_LATEST = "latest"
# Queries remembered by each route, and their length: first pages are asked for in few spellings, cursors are long and never twice.
KNOWN_QUERIES = 256
KNOWN_QUERY_BYTES = 64


@dataclass(frozen=True, slots=True)
class DecodedRequest:
    """What a request asks for: the message, and the 1-based page where the client counts pages (else 0)."""

    message: Message
    page: int = 0


class Codec:
    """Compiles bindings; the tables behind them are shared by all. Names of fields are read in every spelling and written in
    one; values are read as the dialect of that one allows."""

    def __init__(self, spelling: Spelling = SNAKE_CASE) -> None:
        self._decoders = EncoderRegistry(protobuf_json=spelling is PROTOBUF)
        self._encoders = Encoders(spelling)

    def reader(self, method: Method, binding: Binding) -> RequestReader:
        """How requests of the binding are read; an error of the contract is an exception here, at start."""
        return RequestReader(method, binding, decoder_of(method.descriptor.input_type, self._decoders))

    def writer(self, method: Method, binding: Binding) -> Callable[[Any], bytes]:
        """How what services pass for the method's response is written."""
        wire_response: Any = method.wire_response.DESCRIPTOR
        return self._encoders.response(method.descriptor.output_type, wire_response, binding.response_body)


class RequestReader:
    """Reads the requests of one binding."""

    __slots__ = ("_body", "_bounds", "_decoder", "_has_key", "_known", "_page_numbers", "_request", "_variables")

    def __init__(self, method: Method, binding: Binding, decoder: MessageDecoder) -> None:
        self._request = method.request
        self._decoder = decoder
        self._bounds = method.bounds
        self._body = binding.body
        self._page_numbers = method.policy.page_numbers
        self._has_key = IDEMPOTENCY_KEY in decoder.fields
        # Query → what it asks for. Messages are never changed once they are handed over, so one serves every caller.
        self._known: dict[bytes, DecodedRequest] = {}
        self._variables = [decoder.fields[name] for name in binding.variables()]
        if binding.body not in ("", "*") and binding.body not in decoder.fields:
            raise TypeError(f"{method.path} has no field {binding.body} for its body")
        if any(field.read_text is None or field.repeated for field in self._variables):
            raise TypeError(f"{method.path} has a path variable that is not a single value")

    def read(self, values: Sequence[str], query: bytes, body: bytes, me: int, key: str = "") -> DecodedRequest:
        """The request message. `me` is the caller's user id or 0, `key` the header Idempotency-Key or "".

        Raises INVALID_ARGUMENT with every violation found, UNAUTHENTICATED where `me` is said by nobody.
        """
        if not (body or values or key) and (known := self._known.get(query)) is not None:
            return known
        message = self._request()
        reading = DecodeErrors(me)
        if body:
            self._read_body(body, message, reading)
        page = self._read_query(query, message, reading) if query else 0
        for field, value in zip(self._variables, values, strict=True):
            self._read_variable(field, value, message, reading)
        if key and self._has_key:
            self._read_key(key, message, reading)
        if reading.violations:
            reading.finish()
        asked = DecodedRequest(message, page)
        if not (body or values or key or reading.said_me) and len(query) <= KNOWN_QUERY_BYTES:
            if len(self._known) >= KNOWN_QUERIES:
                self._known.clear()
            self._known[query] = asked
        return asked

    def read_binary(self, body: bytes, key: str = "") -> DecodedRequest:
        """The request message out of Protobuf's binary form; fields it does not know are skipped, as everywhere in Protobuf.

        Raises INVALID_ARGUMENT where the body is no such message, or holds a list that is too long.
        """
        try:
            message = self._request.FromString(body)
        except DecodeError:
            raise errors.invalid_argument("the body is no message of this method") from None
        # Here already: the service may be another process.
        self._bounds.check(message)
        if key and self._has_key:
            reading = DecodeErrors(0)
            self._read_key(key, message, reading)
            reading.finish()
        return DecodedRequest(message)

    def _read_body(self, body: bytes, message: Message, reading: DecodeErrors) -> None:
        value = parse_object(body)
        if self._body in ("", "*"):
            if value and not self._body:
                reading.add_violation(next(iter(value))[:64], "is not taken: this route has no body")
                return
            self._decoder.read_object(value, message, reading)
        else:
            self._decoder.read_object({self._body: value}, message, reading)

    def _read_query(self, query: bytes, message: Message, reading: DecodeErrors) -> int:
        parameters = parse_query(query)
        page = 0
        if self._page_numbers:
            page = _read_page(parameters.pop(PAGE, None), reading)
            sort = parameters.pop(SORT, None)
            if sort is not None and [decode_text(one) for one in sort] != [SORT_LATEST]:
                reading.add_violation(SORT, f"must be {SORT_LATEST}")
            if page and "cursor" in parameters:
                reading.add_violation(PAGE, "excludes cursor")
        if self._body == "*":
            for name in parameters:
                reading.add_violation(name[:64], "is not a parameter of this request: its fields stand in the body")
            return page
        read_query(self._decoder, parameters, message, reading)
        return page

    @staticmethod
    def _read_variable(field: Any, value: str, message: Message, reading: DecodeErrors) -> None:
        try:
            if field.takes_me and value == ME:
                found: Any = reading.caller()
            else:
                found = read_id(value) if field.is_id else field.read_text(value)
        except Malformed as error:
            reading.add_violation(field.name, str(error))
            return
        given = getattr(message, field.name)
        if given and given != found:
            reading.add_violation(field.name, "differs from the path")
            return
        setattr(message, field.name, found)

    @staticmethod
    def _read_key(key: str, message: Any, reading: DecodeErrors) -> None:
        if message.idempotency_key and message.idempotency_key != key:
            reading.add_violation(IDEMPOTENCY_KEY, "differs from the header Idempotency-Key")
        message.idempotency_key = key


def _read_page(raws: list[bytes] | None, reading: DecodeErrors) -> int:
    if raws is None:
        return 0
    try:
        if len(raws) != 1:
            raise Malformed("must be given once")
        # Pages count like ids: digits without sign or leading zero.
        return read_id(decode_text(raws[0]))
    except Malformed:
        reading.add_violation(PAGE, "must be one whole number from 1")
        return 0
