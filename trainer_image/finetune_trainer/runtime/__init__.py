"""Modules that all processes share: collectives, device, precision, state directory, heartbeat, errors, logs, disk.

command_line.py is shared by the commands.
"""
