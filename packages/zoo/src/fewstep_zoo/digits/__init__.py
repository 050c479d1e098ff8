"""Moving digits: clips, a Wan video teacher, a judge, and the tasks that measure with them."""
