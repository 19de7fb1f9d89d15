"""What shows a run while it goes on, from the lines that `JSONLines` writes: in the terminal and in the browser."""
