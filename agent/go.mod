module remote-runner/agent

go 1.21
