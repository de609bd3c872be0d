"""The platform: code that every gRPC service needs, whatever its domain. It imports no service and no domain stub."""
