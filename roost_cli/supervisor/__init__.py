"""`roost up --processes`: starts each service in processes of its own, and restarts processes that end."""
