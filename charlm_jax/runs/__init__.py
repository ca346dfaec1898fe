"""The only shell: command lines, configurations, disk, clock, signals, devices."""
