"""`roost load` and the demo: loads users, follows and tweets into a running mesh."""
