"""`roost up --processes`: starts each service in a process of its own and keeps it running."""
