"""Runs the `roost` command as `python -m roost_cli`, for checkouts whose scripts are not on PATH."""

from roost_cli.main import main

main()
