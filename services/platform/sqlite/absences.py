"""Stores in the embedded store of a service which users are deactivated or suspended, each with the time of the change,
so that an older event that arrives later changes nothing."""

from __future__ import annotations

import sqlite3

# A service that counts actions of users must have this script among its migrations.
ABSENCES_SCHEMA = (
    "CREATE TABLE absences (user_id INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, absent INTEGER NOT NULL);"
)

_KNOWN = "SELECT at_us FROM absences WHERE user_id = ?"
_DECIDE = "INSERT OR REPLACE INTO absences (user_id, at_us, absent) VALUES (?, ?, ?)"
_IS_ABSENT = "SELECT 1 FROM absences WHERE user_id = ? AND absent"


def decide(connection: sqlite3.Connection, user_id: int, absent: bool, at_us: int) -> bool:
    """Stores whether the user is absent (deactivated or suspended) from `at_us` (Unix microseconds) on. Returns False,
    and stores nothing, if a later change is stored already."""
    row = connection.execute(_KNOWN, (user_id,)).fetchone()
    if row is not None and row[0] > at_us:
        return False
    connection.execute(_DECIDE, (user_id, at_us, absent))
    return True


def is_absent(connection: sqlite3.Connection, user_id: int) -> bool:
    """Returns True if the user is absent (deactivated or suspended). The actions of an absent user are not counted."""
    return connection.execute(_IS_ABSENT, (user_id,)).fetchone() is not None
