"""Decodes the requests of one HTTP binding (path, query, body, Idempotency-Key) and encodes its responses as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from gateway_http.codec.decoder import ME, DecodeErrors, DecoderRegistry, MessageDecoder, decoder_of
from gateway_http.codec.encoder import PROTOBUF, SNAKE_CASE, Encoders, Spelling
from gateway_http.codec.field_values import Malformed, read_id
from gateway_http.codec.query import decode_text, parse_query, read_query
from gateway_http.codec.strict_json import parse_object
from gateway_http.router import Binding
from services.platform.rpc import errors
from services.platform.rpc.contract import Method

# The request field that the header `Idempotency-Key` sets, if the request has this field.
IDEMPOTENCY_KEY = "idempotency_key"
# Query parameters for numbered pages, for methods whose policy allows them.
PAGE, SORT = "page", "sort"
SORT_LATEST = "latest"
# Decoded queries that each route caches, and the longest of them in bytes. First pages are requested with few different queries;
# queries with a cursor are longer and rarely repeat.
MAX_CACHED_QUERIES = 256
MAX_CACHED_QUERY_BYTES = 64


@dataclass(frozen=True, slots=True)
class DecodedRequest:
    """The request message, and the 1-based page if the client uses page numbers (else 0)."""

    message: Message
    page: int = 0


class Codec:
    """Compiles the decoders and encoders of bindings, which share one table per message type.

    Requests may use any accepted name of a field. `spelling` decides the names in responses; with PROTOBUF, integers and enums in
    requests may also have any form of Protobuf's JSON.
    """

    def __init__(self, spelling: Spelling = SNAKE_CASE) -> None:
        self._decoders = DecoderRegistry(protobuf_json=spelling is PROTOBUF)
        self._encoders = Encoders(spelling)

    def reader(self, method: Method, binding: Binding) -> RequestReader:
        """Returns the decoder of the binding's requests. Raises TypeError if JSON cannot express one of their fields."""
        return RequestReader(method, binding, decoder_of(method.descriptor.input_type, self._decoders))

    def writer(self, method: Method, binding: Binding) -> Callable[[Any], bytes]:
        """Returns the function that encodes the method's wire response as JSON bytes."""
        wire_response: Any = method.wire_response.DESCRIPTOR
        return self._encoders.response(method.descriptor.output_type, wire_response, binding.response_body)


class RequestReader:
    """Decodes the requests of one binding. Raises TypeError if the body or a path variable does not fit the request type."""

    __slots__ = (
        "_body",
        "_bounds",
        "_cached_queries",
        "_decoder",
        "_has_key",
        "_page_numbers",
        "_request",
        "_variables",
    )

    def __init__(self, method: Method, binding: Binding, decoder: MessageDecoder) -> None:
        self._request = method.request
        self._decoder = decoder
        self._bounds = method.bounds
        self._body = binding.body
        self._page_numbers = method.policy.page_numbers
        self._has_key = IDEMPOTENCY_KEY in decoder.fields
        # Query string → decoded request. Request messages are never modified later, so all callers share one.
        self._cached_queries: dict[bytes, DecodedRequest] = {}
        self._variables = [decoder.fields[name] for name in binding.variables()]
        if binding.body not in ("", "*") and binding.body not in decoder.fields:
            raise TypeError(f"{method.path} has no field {binding.body} for its body")
        if any(field.read_text is None or field.repeated for field in self._variables):
            raise TypeError(f"{method.path} has a path variable that is not a single value")

    def read(self, values: Sequence[str], query: bytes, body: bytes, me: int, key: str = "") -> DecodedRequest:
        """Decodes a request. `me` is the caller's user id or 0, `key` the header Idempotency-Key or "".

        Raises INVALID_ARGUMENT with up to MAX_VIOLATIONS violations; UNAUTHENTICATED if the request uses the id `me` without a token.
        """
        if not (body or values or key) and (known := self._cached_queries.get(query)) is not None:
            return known
        message = self._request()
        decode_errors = DecodeErrors(me)
        if body:
            self._read_body(body, message, decode_errors)
        page = self._read_query(query, message, decode_errors) if query else 0
        for field, value in zip(self._variables, values, strict=True):
            self._read_variable(field, value, message, decode_errors)
        if key and self._has_key:
            self._read_key(key, message, decode_errors)
        if decode_errors.violations:
            decode_errors.finish()
        decoded = DecodedRequest(message, page)
        if not (body or values or key or decode_errors.used_me) and len(query) <= MAX_CACHED_QUERY_BYTES:
            if len(self._cached_queries) >= MAX_CACHED_QUERIES:
                self._cached_queries.clear()
            self._cached_queries[query] = decoded
        return decoded

    def read_binary(self, body: bytes, key: str = "") -> DecodedRequest:
        """Decodes a request in Protobuf's binary form; ignores unknown fields, as Protobuf does.

        Raises INVALID_ARGUMENT if the body is not such a message, or if one of its lists is too long.
        """
        try:
            message = self._request.FromString(body)
        except DecodeError:
            raise errors.invalid_argument(
                "the body is not a valid Protobuf message of this method's request type"
            ) from None
        # Checked before the call, which may go to another process.
        self._bounds.check(message)
        if key and self._has_key:
            decode_errors = DecodeErrors(0)
            self._read_key(key, message, decode_errors)
            decode_errors.finish()
        return DecodedRequest(message)

    def _read_body(self, body: bytes, message: Message, decode_errors: DecodeErrors) -> None:
        value = parse_object(body)
        if self._body in ("", "*"):
            if value and not self._body:
                decode_errors.add_violation(next(iter(value))[:64], "is not allowed: this route has no body")
                return
            self._decoder.read_object(value, message, decode_errors)
        else:
            self._decoder.read_object({self._body: value}, message, decode_errors)

    def _read_query(self, query: bytes, message: Message, decode_errors: DecodeErrors) -> int:
        parameters = parse_query(query)
        page = 0
        if self._page_numbers:
            page = _read_page(parameters.pop(PAGE, None), decode_errors)
            sort = parameters.pop(SORT, None)
            if sort is not None and [decode_text(one) for one in sort] != [SORT_LATEST]:
                decode_errors.add_violation(SORT, f"must be {SORT_LATEST}")
            if page and "cursor" in parameters:
                decode_errors.add_violation(PAGE, "cannot be combined with cursor")
        if self._body == "*":
            for name in parameters:
                decode_errors.add_violation(
                    name[:64], "is not a parameter of this request: put its fields into the body"
                )
            return page
        read_query(self._decoder, parameters, message, decode_errors)
        return page

    @staticmethod
    def _read_variable(field: Any, value: str, message: Message, decode_errors: DecodeErrors) -> None:
        try:
            if field.takes_me and value == ME:
                found: Any = decode_errors.caller()
            else:
                found = read_id(value) if field.is_id else field.read_text(value)
        except Malformed as error:
            decode_errors.add_violation(field.name, str(error))
            return
        given = getattr(message, field.name)
        if given and given != found:
            decode_errors.add_violation(field.name, "differs from the path")
            return
        setattr(message, field.name, found)

    @staticmethod
    def _read_key(key: str, message: Any, decode_errors: DecodeErrors) -> None:
        if message.idempotency_key and message.idempotency_key != key:
            decode_errors.add_violation(IDEMPOTENCY_KEY, "differs from the header Idempotency-Key")
        message.idempotency_key = key


def _read_page(raws: list[bytes] | None, decode_errors: DecodeErrors) -> int:
    if raws is None:
        return 0
    try:
        if len(raws) != 1:
            raise Malformed("must be given once")
        # Page numbers have the format of ids: digits without sign or leading zero.
        return read_id(decode_text(raws[0]))
    except Malformed:
        decode_errors.add_violation(PAGE, "must be one whole number from 1")
        return 0
