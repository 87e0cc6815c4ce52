"""What can go wrong around a run: storage, signals, changed files, and the code of users."""
