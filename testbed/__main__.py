"""`python -m testbed`: the command line where the script is not installed."""

from testbed.cli.app import main

if __name__ == "__main__":
    main()
