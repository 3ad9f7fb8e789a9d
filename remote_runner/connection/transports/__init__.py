"""Ways to reach a host: ssh, a command, a step of a Slurm allocation, or a shell on this machine."""
