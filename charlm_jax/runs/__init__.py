"""The imperative shell: command lines, configurations, disk, clock, signals, devices."""
