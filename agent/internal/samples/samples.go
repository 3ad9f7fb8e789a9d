// Package samples measures what applications and their host use, once a second while there are applications.
package samples

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"time"

	"remote-runner/agent/internal/command"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/wire"
)

const (
	shortest = 0.1 // seconds
	// If ps is needed and takes longer, the sample is skipped.
	psTime    = 5 * time.Second
	mostOfPs  = 1 << 20
	oneSecond = float64(time.Second)
)

// Service serves the verb `watch`.
type Service struct {
	Processes *process.Keeper
	Commands  *command.Service
}

// Watch is the verb `watch`: it answers requests for the clock and the host's state, and sends samples until the client
// closes the stream. A client that does not read gets fewer: without credit on the lane, no sample is taken.
func (s *Service) Watch(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct {
		EveryS float64 `json:"every_s"`
	}
	if err := open.Decode(&request); err != nil || !(request.EveryS >= shortest) || request.EveryS > 3600 {
		return wire.Fail("breach", "nothing can be watched by %s", open.Head)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	looker := newLooker(s.said)
	sampled := make(chan struct{})
	go func() {
		defer close(sampled)
		s.sample(ctx, stream.Writer(0, false), time.Duration(request.EveryS*oneSecond))
	}()
	defer func() {
		cancel()
		_ = stream.Close(nil) // the sampler may be waiting for credit
		<-sampled
	}()
	for {
		message, err := stream.Receive(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var word struct{ Clock, State bool }
		_ = message.Decode(&word)
		switch {
		case word.Clock:
			err = stream.Send(map[string]any{"clock": map[string]any{"ns": time.Now().UnixNano()}})
		case word.State:
			err = stream.Send(map[string]any{"state": looker.state(ctx)})
		}
		if err != nil {
			return err
		}
	}
}

// sample writes one line per sample. Without runs it sleeps.
func (s *Service) sample(ctx context.Context, lane io.Writer, every time.Duration) {
	looker, sampler := newLooker(s.said), s.Processes.NewSampler()
	uses, most := map[string]process.Use{}, map[string]process.Use{}
	ps := func() string { return s.said(ctx, process.PSCommand...) }
	var line []byte
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for ctx.Err() == nil {
		begins := s.Processes.NextRun() // before HasRuns, to miss none
		if !s.Processes.HasRuns() {
			ticker.Stop()
			select {
			case <-begins:
			case <-ctx.Done():
				return
			}
			ticker.Reset(every)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		now, host := time.Now(), looker.sample(ctx)
		sampler.Uses(uses, ps)
		if len(uses) == 0 {
			continue
		}
		for id := range most {
			if _, is := uses[id]; !is {
				delete(most, id)
			}
		}
		line = appendStart(line[:0], now, host)
		separator := byte('{')
		for id, use := range uses {
			use = grown(use, most[id])
			most[id] = use
			line = appendUse(append(line, separator), id, use)
			separator = ','
		}
		if _, err := lane.Write(append(line, "}}\n"...)); err != nil {
			return
		}
	}
}

// appendStart begins a line by hand: encoding/json makes 40 KB of garbage for 200 applications.
func appendStart(line []byte, now time.Time, host map[string]float64) []byte {
	text, _ := json.Marshal(host)
	line = strconv.AppendInt(append(line, `{"ns":`...), now.UnixNano(), 10)
	line = append(append(line, `,"host":`...), text...)
	return append(line, `,"runs":`...)
}

// appendUse adds an application; its name needs no escaping in JSON.
func appendUse(line []byte, id string, use process.Use) []byte {
	line = append(append(append(line, '"'), id...), `":[`...)
	line = strconv.AppendFloat(line, use.CPUS, 'f', 2, 64)
	for _, number := range [...]int64{use.RSSBytes, use.Threads, use.Descriptors, use.ReadBytes, use.WrittenBytes} {
		line = strconv.AppendInt(append(line, ','), number, 10)
	}
	return append(line, ']')
}

// grown keeps counters from falling when a process ends that no other of its run waited for.
func grown(use, before process.Use) process.Use {
	use.CPUS = max(use.CPUS, before.CPUS)
	use.ReadBytes = max(use.ReadBytes, before.ReadBytes)
	use.WrittenBytes = max(use.WrittenBytes, before.WrittenBytes)
	return use
}

// said returns a program's output, "" if it fails.
func (s *Service) said(ctx context.Context, argv ...string) string {
	ctx, cancel := context.WithTimeout(ctx, psTime)
	defer cancel()
	done, err := s.Commands.Output(ctx, mostOfPs, argv...)
	if err != nil || done.Status != 0 {
		return ""
	}
	return done.Stdout
}
