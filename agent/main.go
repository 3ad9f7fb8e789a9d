// Command agent is the part of remote-runner that runs on a host. Its programs are `session BASE NONCE SESSION EPOCH`, which
// the bootstrap executes, `serve BASE SESSION`, the guardian, `agent BASE SESSION`, the agent itself, and `version`.
package main

import (
	"fmt"
	"log"
	"os"
	"runtime/debug"

	"remote-runner/agent/internal/facts"
	"remote-runner/agent/internal/host"
	"remote-runner/agent/internal/nix"
)

var identity = "unknown" // set by -ldflags "-X main.identity=…"

func main() {
	log.SetFlags(log.LstdFlags | log.LUTC)
	command, args := "", os.Args
	if len(args) > 1 {
		command, args = args[1], args[2:]
	}
	var err error
	switch command {
	case "session":
		err = host.Session(args)
	case "serve":
		err = host.Guard(args)
	case "agent":
		debug.SetGCPercent(50) // with 200 applications this saves 2 of 14 MB, for half as much work again
		err = host.Serve(args, identity, verbs)
	case "enter":
		err = nix.Enter(args)
	case facts.TryNamespaces:
		err = facts.Try(args)
	case "version":
		fmt.Println(identity)
	default:
		err = fmt.Errorf("usage: agent session|serve|agent|version …")
	}
	if err != nil {
		log.Fatalf("agent %s: %v", command, err)
	}
}
