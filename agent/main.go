// Command agent is all of remote-runner that runs on a host. Its programs are `session BASE NONCE SESSION EPOCH`, which
// the bootstrap becomes, `serve BASE SESSION`, the guardian, `agent BASE SESSION`, the agent itself, and `version`.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"remote-runner/agent/internal/host"
	"remote-runner/agent/internal/wire"
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
		err = host.Serve(args, identity, verbs)
	case "version":
		fmt.Println(identity)
	default:
		err = fmt.Errorf("usage: agent session|serve|agent|version …")
	}
	if err != nil {
		log.Fatalf("agent %s: %v", command, err)
	}
}

// verbs is what the agent serves.
func verbs(a *host.Agent) wire.Handler {
	table := map[string]wire.Handler{}
	return func(ctx context.Context, stream *wire.Stream, open wire.Message) error {
		var head struct {
			Verb string `json:"verb"`
		}
		if err := open.Decode(&head); err != nil {
			return err
		}
		serve := table[head.Verb]
		if serve == nil {
			return wire.Fail("breach", "there is no verb %q", head.Verb)
		}
		return serve(ctx, stream, open)
	}
}
