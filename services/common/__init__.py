"""The kit: everything that every service needs and none owns. A closed list; it imports no service."""
