"""From a config to a checkpoint and a report: loop, step, loss, optimizer, validation, resume."""
