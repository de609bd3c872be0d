"""`roost drill`: kills or restarts processes of a mesh under load, and checks that no acknowledged write is lost."""
