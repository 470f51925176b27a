"""`python -m agent` is `har-agent`."""

from agent.cli import main

if __name__ == "__main__":
    main()
