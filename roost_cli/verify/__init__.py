"""`roost verify`: compares every home timeline with one that is computed from the data of the other services."""
