"""Cards of Salt."""
