"""`python -m roost_cli`, for a checkout whose scripts are not on PATH."""

from roost_cli.main import main

main()
