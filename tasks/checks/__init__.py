"""What `fab doctor` looks at: this machine, each host, and whether the hosts reach each other."""
