"""`roost drill`: kills and restarts processes under load, then checks that nothing acknowledged was lost."""
