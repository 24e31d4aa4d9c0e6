"""The command line `kontext-export`: its flags, its commands and what they print."""
