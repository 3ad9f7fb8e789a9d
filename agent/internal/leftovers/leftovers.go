// Package leftovers lists, sends and removes what runs left on the host, including those of dead agents and of the older
// supervisor. Everything is found by record, never by name.
package leftovers

import (
	"context"
	"fmt"
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
	killFor = 5 * time.Second
	// A watcher needs a moment to notice that its run was ended.
	watcherTime = 3 * time.Second
	// Reading all processes takes 10 ms on a busy host.
	firstPause = 10 * time.Millisecond
	longPause  = 100 * time.Millisecond
)

// Service serves the verbs about runs that are over, or should be.
type Service struct {
	Base base.Directory
	// Home is the user's home, one of the usual places for our directory.
	Home string
	// SendOutputs sends a run's outputs on lane 3, with a report, as the verb `run` does.
	SendOutputs func(ctx context.Context, stream *wire.Stream, run base.Run) error
}

// Places are the directories to look in.
func (s *Service) Places() []base.Directory {
	places, _ := Places(s.Base, s.Home) // of the others Used tells
	return places
}

// found is a run's directory with what its record says; problem is why that cannot be read.
type found struct {
	id      string
	run     base.Run
	record  base.Record
	problem string
}

// all has every run, and the directories in which there may be more, with why they cannot be read.
func (s *Service) all() (runs []found, unread [][2]string) {
	places, unread := Places(s.Base, s.Home)
	for _, place := range places {
		entries, err := os.ReadDir(place.Runs())
		if err != nil && !base.IsNothing(err) {
			unread = append(unread, [2]string{place.Runs(), base.Why(err)})
		}
		for _, entry := range entries {
			if entry.IsDir() {
				run := found{id: entry.Name(), run: place.Run(entry.Name())}
				if run.record, err = base.ReadRecord(run.run); err != nil && !base.IsNothing(err) {
					run.problem = base.Why(err)
				}
				runs = append(runs, run)
			}
		}
	}
	return runs, unread
}

// isAlive reports whether the run is watched, or something that it started still runs.
func (f found) isAlive() bool {
	if base.Alive(f.record) {
		return true
	}
	// A run with a recorded end left nothing.
	if _, ended := f.record["exit"]; ended {
		return false
	}
	return len(f.marked()) > 0
}

// marked finds what the run started, even if its record is damaged or was replaced by the application.
func (f found) marked() []int {
	marker := f.record["marker"]
	if marker == "" {
		return process.Marked(f.id + ":")
	}
	if f.record["boot"] != base.BootID() {
		return nil // from another boot
	}
	return process.Marked(marker)
}

// age is the time since the run's end if that was recorded, else since its start.
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

// Used returns the artifacts that living runs use: a hash, or a store path's base name. It fails where that cannot be
// known.
func (s *Service) Used() (map[string]bool, error) {
	runs, unread := s.all()
	if len(unread) > 0 {
		return nil, fmt.Errorf("which artifacts are in use is not known: %s cannot be read: %s", unread[0][0], unread[0][1])
	}
	used := map[string]bool{}
	for _, run := range runs {
		artifact, told := run.record["artifact"]
		name := filepath.Base(artifact)
		switch {
		case run.problem != "":
			return nil, fmt.Errorf("which artifacts are in use is not known: %s cannot be read: %s", run.run.Record(), run.problem)
		case told && (artifact == "" || used[name]) || !run.isAlive():
		case told:
			used[name] = true
		default:
			return nil, fmt.Errorf("which artifacts are in use is not known: %s is alive, and its record does not tell", run.run)
		}
	}
	return used, nil
}

// Runs is the verb `runs`: one message per run, and one for what cannot be read.
func (s *Service) Runs(_ context.Context, stream *wire.Stream, _ wire.Message) error {
	runs, unread := s.all()
	for _, run := range runs {
		if age, known := run.age(); known {
			run.record["age"] = strconv.FormatInt(int64(age.Seconds()), 10)
		}
		said := map[string]any{
			"id": run.id, "directory": string(run.run), "alive": run.isAlive(), "size": store.SizeOf(string(run.run)),
			"record": run.record,
		}
		if run.problem != "" {
			said["problem"] = run.problem
		}
		if err := stream.Send(map[string]any{"run": said}); err != nil {
			return err
		}
	}
	if len(unread) > 0 {
		return stream.Send(map[string]any{"unread": unread})
	}
	return nil
}

// Fetch is the verb `fetch`: the outputs of one run.
func (s *Service) Fetch(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct{ ID string }
	if err := open.Decode(&request); err != nil {
		return err
	}
	if !base.IsName(request.ID) {
		return wire.Fail("unknown", "there is no run %s", request.ID)
	}
	places, unread := Places(s.Base, s.Home)
	for _, place := range places {
		run := place.Run(request.ID)
		info, err := os.Lstat(string(run))
		switch {
		case err == nil && info.IsDir(): // what of its outputs cannot be read is told by who sends them
			return s.SendOutputs(ctx, stream, run)
		case err != nil && !base.IsNothing(err):
			unread = append(unread, [2]string{string(run), base.Why(err)})
		}
	}
	for _, each := range unread {
		return wire.Fail("unreadable", "%s: %s", each[0], each[1]).With("path", each[0])
	}
	return wire.Fail("unknown", "there is no run %s", request.ID)
}

// Remove is the verb `remove`. A run that is not over stays and is reported, unless the request says to end it.
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
	runs, unread := s.all()
	for _, run := range runs {
		if request.IDs != nil && !asked[run.id] {
			continue
		}
		seen[run.id] = true
		if age, _ := run.age(); request.OlderS != nil && age.Seconds() < *request.OlderS {
			continue
		}
		switch alive := run.isAlive(); {
		case alive && request.EndAlive:
			run.end(ctx, time.Duration(request.GraceS*float64(time.Second)))
		case alive:
			removal.Alive = append(removal.Alive, string(run.run))
			continue
		case run.problem != "" && !request.EndAlive: // where nothing shows its processes it may be alive
			removal.Did(string(run.run), fmt.Errorf("its record cannot be read: %s", run.problem))
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		removal.Did(string(run.run), base.Remove(string(run.run)))
	}
	for _, each := range unread {
		removal.Failed = append(removal.Failed, [2]string{each[0], "cannot be read: " + each[1]})
	}
	for _, id := range request.IDs {
		if !seen[id] && len(unread) == 0 {
			removal.Unknown = append(removal.Unknown, id)
		}
	}
	return stream.Send(removal)
}

// end ends everything that the run started: TERM, grace, KILL. Its watcher then notices; an old supervisor, which had this
// run alone, is ended too.
func (f found) end(ctx context.Context, grace time.Duration) {
	group := f.group()
	process.End(func() []int {
		if ctx.Err() != nil {
			return nil
		}
		pids := f.marked()
		if group > 0 {
			pids = append(pids, process.Members(group)...)
		}
		return pids
	}, process.Ending{Grace: grace, KillFor: killFor, Pause: firstPause, Hurry: ctx.Done()})
	supervisor, _ := strconv.Atoi(f.record["supervisor"])
	if supervisor > 0 && f.record.Watcher() == supervisor {
		_ = syscall.Kill(supervisor, syscall.SIGTERM)
	}
	for deadline := time.Now().Add(watcherTime); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(longPause) {
		if record, err := base.ReadRecord(f.run); err != nil || !base.Alive(record) {
			return
		}
	}
	if supervisor > 0 && f.record.Watcher() == supervisor {
		_ = syscall.Kill(supervisor, syscall.SIGKILL)
	}
}

// group returns the application's process group, or 0 if the number may have been reused.
func (f found) group() int {
	application, err := strconv.Atoi(f.record["application"])
	if err != nil || application <= 1 {
		return 0
	}
	// The number cannot be reused while the watcher lives.
	if f.record.Watcher() != 0 {
		return application
	}
	start := f.record["application_start"]
	if start != "" && f.record["boot"] == base.BootID() && base.StartTime(application) == start {
		return application
	}
	return 0
}
