"""`python -m tmkd`: the command line of whichever Python has the package."""

from tmkd.cli.main import main

if __name__ == "__main__":  # a process that is spawned imports this file under another name
    main()
