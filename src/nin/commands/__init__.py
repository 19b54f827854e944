"""One module for each command of the console program `nin`: parse, call, print."""
