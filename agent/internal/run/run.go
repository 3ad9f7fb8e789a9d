// Package run serves the verb `run`: an application from an empty directory to its removal.
package run

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/nix"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/wire"
)

// Lanes of the stream.
const (
	laneStdin = iota
	laneStdout
	laneStderr
	laneOutputs
)

// Service is what runs need from the agent.
type Service struct {
	Base      base.Directory
	Processes *process.Keeper
	Environ   []string // of the login
	Nix       *nix.Service
	// Artifact reports whether the artifact is there and matches its hash, and marks it as used: a run may change what the
	// next one starts.
	Artifact func(hash string) bool
}

// Program is the program's path as the program sees it.
type Program struct {
	Path  string
	Argv  []string
	place *nix.Place // nil if it is not in a Nix store
}

// Stream is what a run needs of a *wire.Stream.
type Stream interface {
	Send(head any, fields ...[]byte) error
	Receive(ctx context.Context) (wire.Message, error)
	Reader(lane byte) io.Reader
	Writer(lane byte, bulk bool) io.WriteCloser
}

type request struct {
	ID          string            `json:"id"`
	Argc        int               `json:"argc"`
	Artifact    string            `json:"artifact"`
	Store       string            `json:"store"`
	GraceS      float64           `json:"grace_s"`
	RunS        *float64          `json:"run_s"`
	Stdin       bool              `json:"stdin"`
	Fetch       bool              `json:"fetch"`
	Pass        []string          `json:"pass"`
	Record      map[string]string `json:"record"`
	SetTmpdir   bool              `json:"set_tmpdir"`
	SetHostname bool              `json:"set_hostname"`
	CutLines    bool              `json:"cut_lines"`
	Terminal    *window           `json:"terminal"`

	argv, given []string
}

func parse(open wire.Message) (request, error) {
	var r request
	if err := open.Decode(&r); err != nil {
		return r, err
	}
	if !base.IsName(r.ID) || r.Argc < 1 || r.Argc > len(open.Fields) || len(open.Fields[0]) == 0 {
		return r, wire.Fail("breach", "run: no name for a run, or no program")
	}
	if r.GraceS < 0 || r.RunS != nil && *r.RunS < 0 {
		return r, wire.Fail("breach", "run: a time is negative")
	}
	for i, field := range open.Fields {
		if i < r.Argc {
			r.argv = append(r.argv, string(field))
		} else {
			r.given = append(r.given, string(field))
		}
	}
	return r, nil
}

func seconds(s float64) time.Duration {
	return time.Duration(math.Min(s*float64(time.Second), math.MaxInt64/4))
}

// Run is the verb.
func (s *Service) Run(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	return s.run(ctx, stream, open)
}

// run keeps little on its stack while the application runs: with 200 of them each KiB counts.
func (s *Service) run(ctx context.Context, stream Stream, open wire.Message) error {
	a, err := s.begin(ctx, stream, open)
	if err != nil {
		return err
	}
	a.tellStart()
	a.follow()
	if a.fetch && a.sendOutputs() != nil {
		return nil // nobody takes them any more: they stay here
	}
	return leave(ctx, stream, a.directory)
}

func (a *application) tellStart() {
	_ = a.stream.Send(map[string]any{"started": map[string]any{
		"directory": string(a.directory), "outputs": a.directory.Outputs(), "pid": a.process.PID,
	}})
}

func (a *application) sendOutputs() error {
	lane := a.stream.Writer(laneOutputs, true)
	report, err := Send(lane, a.directory.Outputs())
	if err != nil {
		return err
	}
	_ = lane.Close()
	_ = a.stream.Send(map[string]any{"fetched": report})
	return nil
}

// leave waits to be told whether to remove the directory.
func leave(ctx context.Context, stream Stream, directory base.Run) error {
	for {
		message, err := stream.Receive(ctx)
		if err != nil {
			return nil // kept
		}
		var word struct{ Clean, Keep bool }
		_ = message.Decode(&word)
		if word.Clean {
			disk <- struct{}{}
			err := base.Remove(string(directory))
			<-disk
			if err != nil {
				return stream.Send(map[string]any{"kept": string(directory), "problem": err.Error()})
			}
			return stream.Send(map[string]any{"cleaned": true})
		}
		if word.Keep {
			return stream.Send(map[string]any{look(directory): string(directory)})
		}
	}
}

// look reports what is left of a directory that its application may have removed or closed.
func look(directory base.Run) string {
	_, err := os.Lstat(string(directory))
	switch {
	case err == nil:
		return "kept"
	case base.IsNothing(err):
		return "gone"
	}
	return "unseen"
}

// disk limits concurrent starts and removals: each takes a thread, and threads are never released.
var disk = make(chan struct{}, 8)

func (s *Service) begin(ctx context.Context, stream Stream, open wire.Message) (*application, error) {
	r, err := parse(open)
	if err != nil {
		return nil, err
	}
	directory := s.Base.Run(r.ID)
	disk <- struct{}{}
	defer func() { <-disk }()
	if err := makeRun(directory); err != nil {
		return nil, err
	}
	a, err := s.start(ctx, stream, directory, r)
	if err != nil {
		_ = base.Remove(string(directory))
		return nil, err
	}
	a.fetch = r.Fetch
	if r.RunS != nil {
		a.timeout = time.AfterFunc(seconds(*r.RunS), func() { a.end("timeout") })
	}
	return a, nil
}

// makeRun creates the run's directories. The base, which is 0700, protects them.
func makeRun(run base.Run) error {
	err := os.Mkdir(string(run), 0o700)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(string(run)), 0o700); err == nil {
			err = os.Mkdir(string(run), 0o700)
		}
	}
	if errors.Is(err, os.ErrExist) {
		if info, found := os.Lstat(string(run)); found == nil && info.IsDir() {
			return wire.Fail("exists", "there is a run of that name: %s", run).With("directory", string(run))
		}
	}
	if err != nil {
		return wire.NoRoom(err, string(run))
	}
	for _, each := range []string{run.Outputs(), run.Temp()} {
		if err := os.Mkdir(each, 0o700); err != nil {
			_ = base.Remove(string(run))
			return wire.NoRoom(err, string(run))
		}
	}
	return nil
}

// application is a running program with what is needed to end it; none of that is read back from the disk.
type application struct {
	keeper    *process.Keeper
	stream    Stream
	directory base.Run
	process   *process.Process
	program   Program
	grace     time.Duration
	exited    context.Context // ends with the process
	exit      context.CancelFunc
	stdin     *os.File    // nil if it is empty
	pumps     [2]*pump    // stdout, stderr; a terminal has no stderr
	timeout   *time.Timer // nil if there is no limit
	fetch     bool        // its outputs will be sent

	mu     sync.Mutex
	reason string // why it was stopped
	over   bool
	kill   *time.Timer
}

func (s *Service) start(ctx context.Context, stream Stream, directory base.Run, r request) (*application, error) {
	marker := r.ID + ":" + secret()
	record := base.Record{}
	for key, value := range r.Record {
		record[key] = value
	}
	pid := os.Getpid()
	for key, value := range map[string]string{
		"id": r.ID, "artifact": r.Artifact, "command": r.argv[0], "marker": marker, "boot": base.BootID(),
		"agent": strconv.Itoa(pid), "agent_start": base.StartTime(pid),
	} {
		record[key] = value
	}
	// Before the artifact is looked up: while the record exists, nobody removes the artifact.
	if err := os.WriteFile(directory.Record(), record.Format(), 0o600); err != nil {
		return nil, wire.NoRoom(err, directory.Record())
	}
	program, err := s.find(ctx, directory, r)
	if err != nil {
		return nil, err
	}
	env, err := s.environment(directory, marker, r)
	if err != nil {
		return nil, err
	}

	a := &application{
		keeper: s.Processes, stream: stream, directory: directory, program: program, grace: seconds(r.GraceS),
	}
	a.exited, a.exit = context.WithCancel(context.Background())
	spec := process.Spec{Env: env, Dir: directory.Temp(), Marker: marker, Exited: a.exit}
	theirs, err := a.openStreams(r, &spec)
	defer func() {
		for _, file := range theirs {
			syscall.Close(file)
		}
	}()
	if err == nil {
		a.process, err = startProgram(s.Processes, program, spec)
	}
	if err != nil {
		a.exit()
		a.closeStreams()
		return nil, explain(err, program)
	}
	_ = base.Append(directory, base.Record{
		"application":       strconv.Itoa(a.process.PID),
		"application_start": base.StartTime(a.process.PID),
	})
	return a, nil
}

func secret() string {
	var bytes [8]byte
	_, _ = rand.Read(bytes[:])
	return hex.EncodeToString(bytes[:])
}

// openStreams makes an application's streams and puts them into spec; theirs are its ends, for the caller to close.
func (a *application) openStreams(r request, spec *process.Spec) (theirs []int, err error) {
	if r.Terminal != nil {
		file, err := a.openTerminal(*r.Terminal)
		if err != nil {
			return nil, wire.Fail("terminal", "%v", err)
		}
		spec.Terminal, spec.Stdin, spec.Stdout, spec.Stderr = true, file, file, file
		return []int{file}, nil
	}
	if r.Stdin {
		var file int
		if file, a.stdin, err = pipe(); err != nil {
			return nil, err
		}
		theirs = append(theirs, file)
	} else {
		empty, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, empty)
	}
	for i, name := range []string{"stdout", "stderr"} {
		kept := ""
		if r.CutLines {
			kept = filepath.Join(a.directory.Outputs(), "remote-runner."+name+".lines")
		}
		var file int
		if a.pumps[i], file, err = newPump(a.stream.Writer(byte(laneStdout+i), false), kept); err != nil {
			return theirs, err
		}
		theirs = append(theirs, file)
	}
	spec.Stdin, spec.Stdout, spec.Stderr = theirs[0], theirs[1], theirs[2]
	return theirs, nil
}

func (a *application) closeStreams() {
	if a.stdin != nil {
		a.stdin.Close()
	}
	for _, pump := range a.pumps {
		if pump != nil {
			pump.file.Close()
		}
	}
}

// follow waits for the application's end, and reports it.
func (a *application) follow() {
	var pumping sync.WaitGroup
	for i, each := range a.pumps {
		if each == nil {
			_ = a.stream.Writer(byte(laneStdout+i), false).Close()
			continue
		}
		pumping.Add(1)
		go func(p *pump) {
			defer pumping.Done()
			p.run()
		}(each)
	}
	if a.stdin != nil {
		go feed(a.stdin, a.stream.Reader(laneStdin))
	}
	a.listen()
	a.conclude(&pumping)
}

func (a *application) conclude(pumping *sync.WaitGroup) {
	if a.timeout != nil {
		a.timeout.Stop()
	}
	left, untold := a.keeper.EndRun(a.process, a.grace)
	if a.stdin != nil {
		a.stdin.Close()
	}
	for _, pump := range a.pumps {
		if pump != nil {
			pump.finish()
		}
	}
	pumping.Wait()
	status := a.process.Status()
	code, number := status.ExitStatus(), 0
	if status.Signaled() {
		number = int(status.Signal())
		code = 128 + number // as sh reports it
	}
	_ = base.Append(a.directory, base.Record{"exit": strconv.Itoa(code)})
	usage := a.process.Usage()
	exited := map[string]any{
		"status": code, "signal": number, "reason": a.reason, "left": left, "untold": untold, "problem": a.problem(),
		"utime_s": inSeconds(usage.Utime), "stime_s": inSeconds(usage.Stime), "max_rss": a.process.MaxRSS(),
		"cut": map[string]int{"stdout": a.pumps[0].cutLines(), "stderr": a.pumps[1].cutLines()},
	}
	if a.fetch {
		exited["outputs"] = within(sizeTime, func() int64 { return Size(a.directory.Outputs()) })
	}
	_ = a.stream.Send(map[string]any{"exited": exited})
}

// problem returns what kept the process from executing the program, "" if nothing did.
func (a *application) problem() string {
	if a.reason != "ended" {
		return ""
	}
	problem, err := a.program.place.Ended()
	if err != nil {
		return problemOf(err, a.program)
	}
	return problem
}

func inSeconds(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

// listen waits for the application's end, and handles the client's messages meanwhile.
func (a *application) listen() {
	for a.exited.Err() == nil {
		message, err := a.stream.Receive(a.exited)
		if a.exited.Err() != nil {
			break
		}
		if err != nil {
			a.end("lost") // the client is gone
			<-a.exited.Done()
			break
		}
		var word struct {
			Stop   *string
			Window *window
		}
		if message.Decode(&word) != nil {
			continue
		}
		if word.Window != nil {
			a.resize(*word.Window)
		}
		if word.Stop != nil {
			a.end("stop")
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	if a.kill != nil {
		a.kill.Stop()
	}
	if a.reason == "" {
		a.reason = "ended"
	}
}

// end stops the application: TERM, and KILL after the grace period. The first reason counts.
func (a *application) end(reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reason != "" || a.over {
		return
	}
	a.reason = reason
	if a.hasTerminal() {
		a.process.Signal(syscall.SIGHUP) // an interactive shell ignores TERM
	}
	a.process.Signal(syscall.SIGTERM)
	a.kill = time.AfterFunc(a.grace, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if !a.over {
			a.process.Signal(syscall.SIGKILL)
		}
	})
}

// environment returns exactly what the application gets; the last of several values for a name counts.
func (s *Service) environment(directory base.Run, marker string, r request) ([]string, error) {
	var env []string
	at := map[string]int{}
	add := func(entry string) {
		name := nameOf(entry)
		if i, known := at[name]; known {
			env[i] = entry
			return
		}
		at[name] = len(env)
		env = append(env, entry)
	}
	for _, name := range r.Pass {
		if value, found := lookup(s.Environ, name); found {
			add(name + "=" + value)
		}
	}
	add("TEST_OUTPUTS_PATH=" + directory.Outputs())
	add("TEST_TEMP_PATH=" + directory.Temp())
	add(process.Marker + "=" + marker)
	if r.SetTmpdir {
		add("TMPDIR=" + directory.Temp())
	}
	if r.SetHostname {
		hostname, _ := os.Hostname()
		add("HOSTNAME=" + hostname)
	}
	for _, entry := range r.given {
		if nameOf(entry) == "" {
			return nil, wire.Fail("breach", "run: a variable without a name")
		}
		add(entry)
	}
	return env, nil
}

func nameOf(entry string) string {
	for i := 0; i < len(entry); i++ {
		if entry[i] == '=' {
			return entry[:i]
		}
	}
	return ""
}

func lookup(environ []string, name string) (string, bool) {
	for _, entry := range environ {
		if nameOf(entry) == name && name != "" {
			return entry[len(name)+1:], true
		}
	}
	return "", false
}

var _ Stream = (*wire.Stream)(nil)
