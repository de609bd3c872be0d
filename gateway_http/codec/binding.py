"""Decodes the requests of one HTTP binding (path, query, body, Idempotency-Key) and encodes its responses as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from gateway_http.codec.decoder import ME, DecodeErrors, DecoderRegistry, MessageDecoder, decoder_of
from gateway_http.codec.encoder import PROTOBUF, SNAKE_CASE, Encoders, Spelling
from gateway_http.codec.field_values import Malformed, read_id
from gateway_http.codec.query import decode_text, parse_query, read_query
from gateway_http.codec.strict_json import parse_object
from gateway_http.codec.writers import ResponseWriter
from gateway_http.router import Binding
from services.platform.rpc import errors
from services.platform.rpc.contract import Method

# The name of the request field that the header `Idempotency-Key` sets, if the request type has this field.
IDEMPOTENCY_KEY = "idempotency_key"
# The query parameters of numbered pages. Only methods whose policy allows page numbers accept them.
PAGE, SORT = "page", "sort"
SORT_LATEST = "latest"
# Maximum number of decoded queries that each route caches (beyond it, the cache is cleared), and the maximum length in
# bytes of a query that is cached. Clients request first pages with few different queries. Queries with a cursor are
# longer and rarely repeated.
MAX_CACHED_QUERIES = 256
MAX_CACHED_QUERY_BYTES = 64


@dataclass(frozen=True, slots=True)
class DecodedRequest:
    """A decoded request. `page` is the 1-based number of the requested page, 0 if the client does not use page
    numbers."""

    message: Message
    page: int = 0


class Codec:
    """Creates the decoders and encoders of HTTP bindings. Those of all bindings share one table per message type.

    `spelling` defines the field and enum names in responses. Requests may use the snake_case name, the camelCase name
    and the aliases of a field with either spelling. With PROTOBUF, integers and enums in requests may also have any
    form that Protobuf's JSON allows.
    """

    def __init__(self, spelling: Spelling = SNAKE_CASE) -> None:
        self._decoders = DecoderRegistry(protobuf_json=spelling is PROTOBUF)
        self._encoders = Encoders(spelling)

    def reader(self, method: Method, binding: Binding) -> RequestReader:
        """Returns the decoder of the binding's requests. Raises TypeError if the gateway cannot decode the type of a
        field."""
        return RequestReader(method, binding, decoder_of(method.descriptor.input_type, self._decoders))

    def writer(self, method: Method, binding: Binding) -> ResponseWriter:
        """Returns the writer of responses, which are of the method's wire type, if it has one."""
        wire_response: Any = method.wire_response.DESCRIPTOR
        return self._encoders.response(method.descriptor.output_type, wire_response, binding.response_body)


class RequestReader:
    """Decodes the requests of one binding. The constructor raises TypeError if the binding's body or a path variable
    does not match a field of the request type."""

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
        # Decoded requests by query string. No code modifies a request message after decoding, so requests can share it.
        self._cached_queries: dict[bytes, DecodedRequest] = {}
        self._variables = [decoder.fields[name] for name in binding.variables()]
        if binding.body not in ("", "*") and binding.body not in decoder.fields:
            raise TypeError(f"{method.path} has no field {binding.body} for its body")
        if any(field.read_text is None or field.repeated for field in self._variables):
            raise TypeError(f"{method.path} has a path variable that is not a single value")

    def read(self, values: Sequence[str], query: bytes, body: bytes, me: int, key: str = "") -> DecodedRequest:
        """Decodes a request from the values of the path variables, the query string and the body.

        `me` is the user id of the actor, 0 without a token; it replaces the text `me` in ids. `key` is the header
        Idempotency-Key, or "". Raises INVALID_ARGUMENT with up to MAX_VIOLATIONS violations; UNAUTHENTICATED if the
        request uses the id `me` without a token.
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
        """Decodes a request in Protobuf's binary format. Ignores unknown fields, as Protobuf does. `key` is the header
        Idempotency-Key, or "".

        Raises INVALID_ARGUMENT if the body is not a message of the request type, if a list is too long, or if `key`
        differs from the message's own idempotency key.
        """
        try:
            message = self._request.FromString(body)
        except DecodeError:
            raise errors.invalid_argument(
                "the body is not a valid Protobuf message of this method's request type"
            ) from None
        # The bounds of lists are checked before the service is called, so that a message with too long lists is not
        # sent to another process.
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
        # Page numbers have the same format as ids: digits without sign or leading zero.
        return read_id(decode_text(raws[0]))
    except Malformed:
        decode_errors.add_violation(PAGE, "must be one whole number from 1")
        return 0
