"""`roost verify`: compares the home timeline of every active user with one that is computed from the data of the other
services, prints the differences, and exits with 1 if there are any."""
