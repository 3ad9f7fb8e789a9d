"""What reaches a host: ssh, a command, a step of a Slurm allocation, or a shell of this machine."""
