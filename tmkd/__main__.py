"""`python -m tmkd`: the command line of whichever Python has the package."""

from tmkd.cli import main

main()
