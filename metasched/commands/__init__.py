"""What each command does, one file a command; metasched/cli parses their arguments."""
