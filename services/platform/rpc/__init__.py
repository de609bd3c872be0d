"""The contract as Python sees it, errors, the current call, deadlines, and the chain around a servicer's method."""
