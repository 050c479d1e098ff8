"""Moving digits: clips, a video teacher of the Wan classes, a judge, and the task that measures with them."""
