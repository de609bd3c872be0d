"""The home timeline of one reader: its rules, its build and its pages."""
