"""One thin file a subcommand; torch is imported inside, so that `--help` is instant."""
