"""The `fastpaxos` command: one module for each subcommand, `main` joins them."""
