"""Private ground: argument checks, memory, locks, files, threads, progress."""
