"""`roost load` and the demo: puts people, follows and tweets into a running mesh."""
