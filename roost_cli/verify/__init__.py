"""`roost verify`: compares the home timeline of every user who is neither suspended nor deactivated with one that is
computed from the data of the other services. Prints the differences, and exits with 1 if there are any."""
