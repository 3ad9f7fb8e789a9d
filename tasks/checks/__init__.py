"""The checks of `fab doctor`: this machine, each host, and whether the hosts reach each other."""
