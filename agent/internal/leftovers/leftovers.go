// Package leftovers lists, sends and removes what runs left on the host, also those of agents that are gone and of the
// supervisor before this agent. Everything is found by record, never by name.
package leftovers

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/store"
	"remote-runner/agent/internal/wire"
)

const (
	// KILL is repeated for so long: what sits in the kernel ends when the kernel lets go of it.
	killFor = 5 * time.Second
	// A watcher whose run was ended needs a moment to see it.
	watcherTime = 3 * time.Second
	// A look at all processes takes 10 ms where there are many.
	firstPause = 10 * time.Millisecond
	longPause  = 100 * time.Millisecond
)

// Service answers the verbs about runs that are over, or should be.
type Service struct {
	Base base.Directory
	// Home is the user's, where one of the usual places is.
	Home string
	// SendOutputs sends a run's outputs on lane 3 and tells about them, as the verb `run` does.
	SendOutputs func(ctx context.Context, stream *wire.Stream, run base.Run) error
}

// Places are the directories that are looked at.
func (s *Service) Places() []base.Directory { return Places(s.Base, s.Home) }

// found is a run's directory with what its record says.
type found struct {
	id     string
	run    base.Run
	record base.Record
}

func (s *Service) all() (runs []found) {
	for _, place := range s.Places() {
		entries, _ := os.ReadDir(place.Runs())
		for _, entry := range entries {
			if entry.IsDir() {
				run := place.Run(entry.Name())
				record, _ := base.ReadRecord(run)
				runs = append(runs, found{entry.Name(), run, record})
			}
		}
	}
	return runs
}

// isAlive says whether somebody watches the run, or something that it started still runs.
func (f found) isAlive() bool {
	if base.Alive(f.record) {
		return true
	}
	// What ended has left nothing.
	if _, ended := f.record["exit"]; ended {
		return false
	}
	return len(f.marked()) > 0
}

// marked finds what the run started, also where its record was cut off, or replaced by the application.
func (f found) marked() []int {
	marker := f.record["marker"]
	if marker == "" {
		return process.Marked(f.id + ":")
	}
	if f.record["boot"] != base.BootID() {
		return nil // of another start of the machine
	}
	return process.Marked(marker)
}

// age is the time since the start while it runs, since its end when that was seen.
func (f found) age() (age time.Duration, known bool) {
	info, err := os.Lstat(f.run.Record())
	if err != nil {
		info, err = os.Lstat(string(f.run))
		return since(info, err), false
	}
	return since(info, nil), true
}

func since(info os.FileInfo, err error) time.Duration {
	if err != nil {
		return 0
	}
	return time.Since(info.ModTime())
}

// Used has the names of the artifacts that living runs started from: a hash, or a store path without its directory.
func (s *Service) Used() map[string]bool {
	used := map[string]bool{}
	for _, run := range s.all() {
		artifact := run.record["artifact"]
		if name := filepath.Base(artifact); artifact != "" && !used[name] && run.isAlive() {
			used[name] = true
		}
	}
	return used
}

// Runs is the verb `runs`: a message for each.
func (s *Service) Runs(_ context.Context, stream *wire.Stream, _ wire.Message) error {
	for _, run := range s.all() {
		if age, known := run.age(); known {
			run.record["age"] = strconv.FormatInt(int64(age.Seconds()), 10)
		}
		said := map[string]any{
			"id": run.id, "directory": string(run.run), "alive": run.isAlive(), "size": store.SizeOf(string(run.run)),
			"record": run.record,
		}
		if err := stream.Send(map[string]any{"run": said}); err != nil {
			return err
		}
	}
	return nil
}

// Fetch is the verb `fetch`: the outputs of one run.
func (s *Service) Fetch(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct{ ID string }
	if err := open.Decode(&request); err != nil {
		return err
	}
	for _, place := range s.Places() {
		run := place.Run(request.ID)
		if info, err := os.Lstat(run.Outputs()); base.IsName(request.ID) && err == nil && info.IsDir() {
			return s.SendOutputs(ctx, stream, run)
		}
	}
	return wire.Fail("unknown", "there is no run %s", request.ID)
}

// Remove is the verb `remove`. A run that is not over stays and is told of, unless it shall be ended.
func (s *Service) Remove(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct {
		IDs      []string `json:"ids"`
		OlderS   *float64 `json:"older_s"`
		EndAlive bool     `json:"end_alive"`
		GraceS   float64  `json:"grace_s"`
	}
	if err := open.Decode(&request); err != nil {
		return err
	}
	asked := map[string]bool{}
	for _, id := range request.IDs {
		asked[id] = true
	}
	seen := map[string]bool{}
	removal := store.NewRemoval()
	for _, run := range s.all() {
		if request.IDs != nil && !asked[run.id] {
			continue
		}
		seen[run.id] = true
		if age, _ := run.age(); request.OlderS != nil && age.Seconds() < *request.OlderS {
			continue
		}
		if run.isAlive() {
			if !request.EndAlive {
				removal.Alive = append(removal.Alive, string(run.run))
				continue
			}
			run.end(ctx, time.Duration(request.GraceS*float64(time.Second)))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		removal.Did(string(run.run), base.Remove(string(run.run)))
	}
	for _, id := range request.IDs {
		if !seen[id] {
			removal.Unknown = append(removal.Unknown, id)
		}
	}
	return stream.Send(removal)
}

// end ends all that the run started: TERM, grace, KILL. Then its watcher sees that, or is ended too where it is a
// supervisor that had but this run.
func (f found) end(ctx context.Context, grace time.Duration) {
	group := f.group()
	find := func() []int {
		pids := f.marked()
		if group > 0 {
			pids = append(pids, process.Members(group)...)
		}
		return pids
	}
	endAll(ctx, grace, find)
	supervisor, _ := strconv.Atoi(f.record["supervisor"])
	if supervisor > 0 && f.record.Watcher() == supervisor {
		_ = syscall.Kill(supervisor, syscall.SIGTERM)
	}
	for deadline := time.Now().Add(watcherTime); time.Now().Before(deadline) && wait(ctx, longPause); {
		if record, err := base.ReadRecord(f.run); err != nil || !base.Alive(record) {
			return
		}
	}
	if supervisor > 0 && f.record.Watcher() == supervisor {
		_ = syscall.Kill(supervisor, syscall.SIGKILL)
	}
}

// group is the number of the application's group, or 0 where it may be somebody else's by now.
func (f found) group() int {
	application, err := strconv.Atoi(f.record["application"])
	if err != nil || application <= 1 {
		return 0
	}
	// It can be nobody else's while its watcher lives.
	if f.record.Watcher() != 0 {
		return application
	}
	start := f.record["application_start"]
	if start != "" && f.record["boot"] == base.BootID() && base.StartTime(application) == start {
		return application
	}
	return 0
}

// endAll ends what find finds, until nothing is found.
func endAll(ctx context.Context, grace time.Duration, find func() []int) {
	told := map[int]bool{}
	began := time.Now()
	for pause := firstPause; time.Since(began) < grace+killFor; pause = min(2*pause, longPause) {
		pids := find()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			switch {
			case time.Since(began) >= grace:
				_ = syscall.Kill(pid, syscall.SIGKILL)
			case !told[pid]: // also one that was just being started
				told[pid] = true
				_ = syscall.Kill(pid, syscall.SIGTERM)
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
		}
		if !wait(ctx, pause) {
			return
		}
	}
}

func wait(ctx context.Context, pause time.Duration) bool {
	select {
	case <-time.After(pause):
		return true
	case <-ctx.Done():
		return false
	}
}
