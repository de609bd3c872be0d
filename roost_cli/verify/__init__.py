"""`roost verify`: compares every home timeline with one computed independently."""
