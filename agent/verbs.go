package main

import (
	"context"
	"os"
	"os/user"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/command"
	"remote-runner/agent/internal/facts"
	"remote-runner/agent/internal/files"
	"remote-runner/agent/internal/host"
	"remote-runner/agent/internal/leftovers"
	"remote-runner/agent/internal/links"
	"remote-runner/agent/internal/nix"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/relay"
	"remote-runner/agent/internal/run"
	"remote-runner/agent/internal/samples"
	"remote-runner/agent/internal/store"
	"remote-runner/agent/internal/wire"
)

// verbs is what the agent serves.
func verbs(a *host.Agent) wire.Handler {
	environ, home := os.Environ(), home()
	keeper := process.NewKeeper(a.Groups)
	commands := &command.Service{Processes: keeper, Environ: environ, Home: home}
	left := &leftovers.Service{Base: a.Base, Home: home, SendOutputs: sendOutputs}
	nixes := &nix.Service{Base: a.Base, Processes: keeper, Environ: environ, Home: home}
	artifacts := &store.Service{Base: a.Base, Used: left.Used, Places: left.Places, Prove: nixes.Prove}
	runs := &run.Service{Base: a.Base, Processes: keeper, Environ: environ, Nix: nixes, Artifact: artifacts.Use}
	copies := &files.Service{Home: home}
	// The session is created later.
	relays := &relay.Service{RunOfSocket: keeper.RunOfSocket, Open: func(head any, fields ...[]byte) (*wire.Stream, error) {
		return a.Session.Open(head, fields...)
	}}
	return wire.Verbs{
		"run":              runs.Run,
		"exec":             commands.Exec,
		"artifact":         artifacts.Artifact,
		"nix":              nixes.Copy,
		"closure":          artifacts.Closure,
		"artifacts":        artifacts.Artifacts,
		"remove-artifacts": artifacts.RemoveArtifacts,
		"listen":           relays.Listen,
		"dial":             relays.Dial,
		"whose":            relays.Whose,
		"facts":            (&facts.Service{Base: a.Base, Commands: commands, Nix: nixes}).Facts,
		"watch":            (&samples.Service{Processes: keeper, Commands: commands}).Watch,
		"meet":             links.Meet,
		"reach":            links.Reach,
		"runs":             left.Runs,
		"fetch":            left.Fetch,
		"remove":           left.Remove,
		"put":              copies.Put,
		"get":              copies.Get,
	}.Serve
}

// home is the login's home.
func home() string {
	if path, err := os.UserHomeDir(); err == nil && path != "" {
		return path
	}
	if who, err := user.Current(); err == nil && who.HomeDir != "" {
		return who.HomeDir
	}
	return "/"
}

// sendOutputs sends a run's outputs as the verb run does.
func sendOutputs(_ context.Context, stream *wire.Stream, from base.Run) error {
	lane := stream.Writer(3, true)
	report, err := run.Send(lane, from.Outputs())
	if err != nil {
		return err
	}
	if err := lane.Close(); err != nil {
		return err
	}
	return stream.Send(map[string]any{"fetched": report})
}
