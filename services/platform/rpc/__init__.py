"""The contract read from descriptors, errors, the current call, deadlines, rate limits, and the interceptors of every method."""
