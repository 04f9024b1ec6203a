"""Text games as gymnasium environments with the valid actions in `info`; worker processes."""
