package run

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/store"
	"remote-runner/agent/internal/wire"
)

var keeper *process.Keeper

func TestMain(m *testing.M) {
	keeper = process.NewKeeper(nil)
	os.Exit(m.Run())
}

// client is the other side of a run's stream, with as much credit as it is asked for.
type client struct {
	mu     sync.Mutex
	cond   *sync.Cond
	lanes  map[byte]*bytes.Buffer
	ended  map[byte]bool
	said   []map[string]any
	words  chan string
	closed chan struct{}
	stdin  io.Reader
	credit int // of stdout; -1: without end
}

func newClient() *client {
	c := &client{
		lanes: map[byte]*bytes.Buffer{}, ended: map[byte]bool{},
		words: make(chan string, 10), closed: make(chan struct{}), stdin: strings.NewReader(""), credit: -1,
	}
	c.cond = sync.NewCond(&c.mu)
	return c
}

func (c *client) Send(head any, _ ...[]byte) error {
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var message map[string]any
	_ = json.Unmarshal(text, &message)
	c.said = append(c.said, message)
	c.cond.Broadcast()
	return nil
}

func (c *client) Receive(ctx context.Context) (wire.Message, error) {
	select {
	case word := <-c.words:
		return wire.Message{Head: json.RawMessage(word)}, nil
	case <-c.closed:
		return wire.Message{}, io.EOF
	case <-ctx.Done():
		return wire.Message{}, ctx.Err()
	}
}

func (c *client) Reader(byte) io.Reader { return c.stdin }

func (c *client) Writer(lane byte, _ bool) io.WriteCloser { return clientLane{c, lane} }

type clientLane struct {
	c    *client
	lane byte
}

func (l clientLane) Write(data []byte) (int, error) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	for l.lane == laneStdout && l.c.credit == 0 {
		l.c.cond.Wait()
	}
	select {
	case <-l.c.closed:
		return 0, errors.New("closed")
	default:
	}
	if l.c.lanes[l.lane] == nil {
		l.c.lanes[l.lane] = &bytes.Buffer{}
	}
	l.c.cond.Broadcast()
	return l.c.lanes[l.lane].Write(data)
}

func (l clientLane) Close() error {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	l.c.ended[l.lane] = true
	l.c.cond.Broadcast()
	return nil
}

func (c *client) text(lane byte) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lanes[lane] == nil {
		return ""
	}
	return c.lanes[lane].String()
}

func (c *client) message(kind string) map[string]any {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, each := range c.said {
		if inner, found := each[kind]; found {
			values, _ := inner.(map[string]any)
			if values == nil {
				values = map[string]any{kind: inner}
			}
			return values
		}
	}
	return nil
}

// until waits for something that the run does.
func (c *client) until(t *testing.T, what func() bool) {
	t.Helper()
	late := time.Now().Add(10 * time.Second)
	for !what() {
		if time.Now().After(late) {
			t.Fatalf("it did not come; said %v, stdout %q, stderr %q", c.said, c.text(1), c.text(2))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

type trial struct {
	*client
	t       *testing.T
	service Service
	head    map[string]any
	result  chan error
}

func newTrial(t *testing.T) *trial {
	directory, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &trial{
		client: newClient(), t: t,
		service: Service{
			Base: base.Directory(directory), Processes: keeper, Environ: os.Environ(),
			Artifact: (&store.Service{Base: base.Directory(directory)}).Use,
		},
		head: map[string]any{
			"verb": "run", "id": "run-1", "artifact": "", "store": "", "grace_s": 1, "run_s": nil, "fetch": true,
			"pass": []string{"PATH", "HOME"}, "record": map[string]string{"plan": "p"}, "set_tmpdir": true,
			"set_hostname": true, "cut_lines": true,
		},
		result: make(chan error, 1),
	}
}

func (r *trial) directory() base.Run { return r.service.Base.Run("run-1") }

func (r *trial) start(argv []string, env ...string) {
	head := map[string]any{"argc": len(argv)}
	for key, value := range r.head {
		head[key] = value
	}
	text, _ := json.Marshal(head)
	open := wire.Message{Head: text}
	for _, field := range append(append([]string(nil), argv...), env...) {
		open.Fields = append(open.Fields, []byte(field))
	}
	go func() { r.result <- r.service.run(context.Background(), r.client, open) }()
}

func (r *trial) sh(script string, words ...string) {
	r.start(append([]string{"/bin/sh", "-c", script, "sh"}, words...))
}

func (r *trial) wait() error {
	r.t.Helper()
	select {
	case err := <-r.result:
		return err
	case <-time.After(20 * time.Second):
		r.t.Fatalf("it did not end; said %v", r.said)
		return nil
	}
}

// finish lets the run end as its client wants it, and returns what it said of the exit.
func (r *trial) finish(word string) map[string]any {
	r.t.Helper()
	r.until(r.t, func() bool { return r.message("fetched") != nil || len(r.result) > 0 })
	r.words <- word
	if err := r.wait(); err != nil {
		r.t.Fatal(err)
	}
	exited := r.message("exited")
	if exited == nil {
		r.t.Fatalf("no exit was told: %v", r.said)
	}
	return exited
}

func (r *trial) clean() map[string]any {
	r.t.Helper()
	return r.finish(`{"clean":true}`)
}

func TestBothStreamsArriveByteForByte(t *testing.T) {
	r := newTrial(t)
	r.sh(`printf 'out\0\377no newline'; head -c 300000 /dev/zero >&2; exit 3`)
	exited := r.clean()
	if r.text(1) != "out\x00\xffno newline" || r.text(2) != string(make([]byte, 300000))[:0]+shortened(r.text(2)) {
		t.Errorf("stdout %q, stderr of %d bytes", r.text(1), len(r.text(2)))
	}
	if exited["status"] != 3.0 || exited["signal"] != 0.0 || exited["reason"] != "ended" || exited["left"] != 0.0 {
		t.Errorf("exited %v", exited)
	}
	if !r.ended[1] || !r.ended[2] || !r.ended[3] {
		t.Errorf("lanes ended: %v", r.ended)
	}
	if r.message("cleaned") == nil {
		t.Errorf("said %v", r.said)
	}
	if _, err := os.Stat(string(r.directory())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is there: %v", err)
	}
}

// shortened is what is expected of a line that was too long: itself, when it has the note.
func shortened(text string) string {
	if strings.Contains(text, "[cut: 300000 bytes, whole as line 1 of remote-runner.stderr.lines]") {
		return text
	}
	return ""
}

func TestLargeStreamsPassUncut(t *testing.T) {
	r := newTrial(t)
	r.head["cut_lines"] = false
	r.sh(`head -c 5000000 /dev/zero; head -c 3000000 /dev/zero >&2`)
	r.clean()
	if len(r.text(1)) != 5000000 || len(r.text(2)) != 3000000 {
		t.Errorf("%d and %d bytes", len(r.text(1)), len(r.text(2)))
	}
}

func TestExitIsToldAsShSaysIt(t *testing.T) {
	r := newTrial(t)
	r.sh("kill -9 $$")
	exited := r.clean()
	if exited["status"] != 137.0 || exited["signal"] != 9.0 {
		t.Errorf("exited %v", exited)
	}
}

func TestEnvironmentIsExactlyTheGivenOne(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc/self/environ")
	}
	r := newTrial(t)
	r.service.Environ = []string{"PATH=/usr/bin:/bin", "HOME=/home", "SECRET=x", "LANG=C"}
	given := []string{"EMPTY=", "NEWLINES=\na\n\nb\n", "a.b=odd", "BYTES=\x01\xff=", "HOME=/mine", "_=under", "PWD=/x"}
	r.start([]string{"cat", "/proc/self/environ"}, given...)
	r.clean()
	found := map[string]string{}
	for _, entry := range strings.Split(strings.TrimRight(r.text(1), "\x00"), "\x00") {
		name, value, _ := strings.Cut(entry, "=")
		if _, twice := found[name]; twice {
			t.Errorf("%s is there twice", name)
		}
		found[name] = value
	}
	if !strings.HasPrefix(found[process.Marker], "run-1:") {
		t.Errorf("marker %q", found[process.Marker])
	}
	delete(found, process.Marker)
	hostname, _ := os.Hostname()
	directory := string(r.directory())
	want := map[string]string{
		"PATH": "/usr/bin:/bin", "TEST_OUTPUTS_PATH": directory + "/outputs", "TEST_TEMP_PATH": directory + "/tmp",
		"TMPDIR": directory + "/tmp", "HOSTNAME": hostname,
		"EMPTY": "", "NEWLINES": "\na\n\nb\n", "a.b": "odd", "BYTES": "\x01\xff=", "HOME": "/mine", "_": "under", "PWD": "/x",
	}
	if !reflect.DeepEqual(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
}

func TestNothingOfOursIsOpenAndNoSignalIsIgnored(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	r := newTrial(t)
	r.sh("ls /proc/$$/fd; grep SigIgn /proc/self/status; grep SigBlk /proc/self/status; pwd; cat /proc/$$/stat")
	r.clean()
	lines := strings.Split(strings.TrimSpace(r.text(1)), "\n")
	if strings.Join(lines[:3], "") != "012" || !strings.HasPrefix(lines[3], "SigIgn") {
		t.Fatalf("open: %q", lines)
	}
	for _, line := range lines[3:5] {
		mask, err := strconv.ParseUint(strings.Fields(line)[1], 16, 64)
		if err != nil || mask&(1<<31-1) != 0 {
			t.Errorf("%s", line)
		}
	}
	if lines[5] != string(r.directory())+"/tmp" {
		t.Errorf("it runs in %s", lines[5])
	}
	stat := strings.Fields(lines[6][strings.LastIndex(lines[6], ")")+1:])
	pid := strings.Fields(lines[6])[0]
	if stat[2] != pid || stat[3] != pid {
		t.Errorf("group %s, session %s of %s", stat[2], stat[3], pid)
	}
}

func TestStdinIsEmptyOrTheClients(t *testing.T) {
	r := newTrial(t)
	r.sh("cat; echo end")
	r.clean()
	if r.text(1) != "end\n" {
		t.Errorf("%q", r.text(1))
	}
	r = newTrial(t)
	r.head["stdin"] = true
	r.client.stdin = strings.NewReader(strings.Repeat("a line\n", 30000))
	r.sh("wc -l")
	r.clean()
	if strings.TrimSpace(r.text(1)) != "30000" {
		t.Errorf("%q", r.text(1))
	}
	r = newTrial(t)
	r.head["stdin"] = true
	r.client.stdin = strings.NewReader(strings.Repeat("a line\n", 30000))
	r.sh("exec <&-; exit 5")
	if exited := r.clean(); exited["status"] != 5.0 {
		t.Errorf("%v", exited)
	}
}

func TestWhatIsLeftBehindIsEndedAndCounted(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	r := newTrial(t)
	r.sh(`sleep 601 & echo $!; setsid sleep 601 & echo $!; (trap '' TERM; exec sleep 601) & echo $!; sleep 0.3`)
	exited := r.clean()
	if exited["left"] != 3.0 || exited["untold"] != 0.0 {
		t.Errorf("exited %v", exited)
	}
	for _, pid := range strings.Fields(r.text(1)) {
		number, _ := strconv.Atoi(pid)
		if syscall.Kill(number, 0) == nil {
			t.Errorf("%s is there", pid)
		}
	}
}

func TestStopGivesTimeToEnd(t *testing.T) {
	r := newTrial(t)
	r.sh(`trap 'echo bye >"$TEST_OUTPUTS_PATH/last"; exit 7' TERM; echo ready; while :; do sleep 0.02; done`)
	r.until(t, func() bool { return r.text(1) != "" })
	r.words <- `{"stop":"somebody wants it"}`
	exited := r.clean()
	if exited["status"] != 7.0 || exited["reason"] != "stop" || r.message("fetched")["files"] != 1.0 {
		t.Errorf("exited %v, fetched %v", exited, r.message("fetched"))
	}
}

func TestStopKillsWhatDoesNotEnd(t *testing.T) {
	r := newTrial(t)
	r.head["grace_s"] = 0.1
	r.sh(`trap '' TERM; echo ready; while :; do sleep 0.02; done`)
	r.until(t, func() bool { return r.text(1) != "" })
	r.words <- `{"stop":""}`
	if exited := r.clean(); exited["status"] != 137.0 || exited["reason"] != "stop" {
		t.Errorf("exited %v", exited)
	}
}

func TestARunHasItsTime(t *testing.T) {
	r := newTrial(t)
	r.head["run_s"] = 0.1
	r.sh("sleep 60")
	if exited := r.clean(); exited["status"] != 143.0 || exited["reason"] != "timeout" {
		t.Errorf("exited %v", exited)
	}
}

func TestWhenNobodyListensItEndsAndTheOutputsStay(t *testing.T) {
	r := newTrial(t)
	r.head["grace_s"] = 0.3
	r.sh(`echo kept >"$TEST_OUTPUTS_PATH/f"; trap '' TERM; echo $$; while :; do echo much; sleep 0.01; done`)
	r.until(t, func() bool { return r.text(1) != "" })
	close(r.closed)
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(filepath.Join(r.directory().Outputs(), "f"))
	record, err := base.ReadRecord(r.directory())
	if string(text) != "kept\n" || err != nil || record["exit"] != "137" || record["plan"] != "p" {
		t.Errorf("%q, %v, %v", text, record, err)
	}
}

func TestASlowReaderStopsTheApplicationAlone(t *testing.T) {
	r := newTrial(t)
	r.credit = 0
	r.sh(`echo err >&2; head -c 1000000 /dev/zero | tr '\0' '\n'; echo done >"$TEST_OUTPUTS_PATH/f"`)
	r.until(t, func() bool { return r.text(2) != "" })
	time.Sleep(100 * time.Millisecond)
	if _, err := os.Stat(filepath.Join(r.directory().Outputs(), "f")); err == nil {
		t.Error("it ran on")
	}
	r.mu.Lock()
	r.credit = -1
	r.cond.Broadcast()
	r.mu.Unlock()
	r.clean()
	if len(r.text(1)) != 1000000 {
		t.Errorf("%d bytes", len(r.text(1)))
	}
}

func TestWithoutItsDirectoryItIsStillEndedAndTold(t *testing.T) {
	aPipe := func(path string) error {
		record := base.Directory(path).Run("run-1").Record()
		if err := os.Remove(record); err != nil {
			return err
		}
		return syscall.Mkfifo(record, 0o600)
	}
	harms := []func(string) error{os.RemoveAll, func(path string) error { return os.Chmod(path, 0) }, aPipe}
	for i, harm := range harms {
		r := newTrial(t)
		r.sh(`echo ready; sleep 60`)
		r.until(t, func() bool { return r.text(1) != "" })
		if err := harm(string(r.service.Base)); err != nil {
			t.Fatal(err)
		}
		r.words <- `{"stop":""}`
		exited := r.clean()
		if err := os.Chmod(string(r.service.Base), 0o700); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if exited["status"] != 143.0 || exited["reason"] != "stop" {
			t.Errorf("exited %v", exited)
		}
		hinders := i == 0 || i == 1 && os.Geteuid() != 0
		if hinders && r.message("fetched")["whole"] != false {
			t.Errorf("fetched %v", r.message("fetched"))
		}
	}
}

func TestKeepKeeps(t *testing.T) {
	r := newTrial(t)
	r.sh("exit 0")
	r.finish(`{"keep":true}`)
	if r.message("kept")["kept"] != string(r.directory()) {
		t.Errorf("said %v", r.said)
	}
	second := newTrial(t)
	second.service = r.service
	second.sh("exit 0")
	failure := second.failure()
	if failure.Kind != "exists" || failure.More["directory"] != string(r.directory()) {
		t.Errorf("%v", failure)
	}
}

func (r *trial) failure() *wire.Failure {
	r.t.Helper()
	err := r.wait()
	var failure *wire.Failure
	if !errors.As(err, &failure) {
		r.t.Fatalf("no failure but %v", err)
	}
	return failure
}

func TestUnwritableDirectoriesAreRemoved(t *testing.T) {
	r := newTrial(t)
	r.sh(`mkdir -p "$TEST_OUTPUTS_PATH/a/b"; echo x >"$TEST_OUTPUTS_PATH/a/b/c"; chmod 500 "$TEST_OUTPUTS_PATH/a/b"; chmod 0 "$TEST_TEMP_PATH"`)
	r.clean()
	if r.message("cleaned") == nil {
		t.Errorf("said %v", r.said)
	}
}

func TestAProgramThatCannotStartIsToldOf(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs a kernel that knows ELF")
	}
	foreign := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	foreign[16], foreign[18] = 2, 0xf3
	if runtime.GOARCH == "riscv64" {
		foreign[18] = 0x3e
	}
	loaderless, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(loaderless, []byte("/ld"))
	cases := []struct {
		name    string
		content []byte
		mode    os.FileMode
		problem string
	}{
		{"nothing", nil, 0, "nothing"},
		{"mode", []byte("#!/bin/sh\n"), 0o600, "not-executable"},
		{"foreign", foreign, 0o700, fmt.Sprintf("format:elf-%02x00", foreign[18])},
		{"mach-o", append([]byte("\xcf\xfa\xed\xfe"), make([]byte, 60)...), 0o700, "format:mach-o"},
		{"binary", []byte("BIN\x00ARY and more than twenty bytes of it"), 0o700, "format:unknown"},
		{"script", []byte("#!/no/such/interpreter -x\n"), 0o700, "interpreter:/no/such/interpreter"},
	}
	if at > 0 {
		changed := bytes.Clone(loaderless)
		changed[at+1] = 'n'
		start := bytes.LastIndexByte(changed[:at], 0) + 1
		end := at + bytes.IndexByte(changed[at:], 0)
		cases = append(cases, struct {
			name    string
			content []byte
			mode    os.FileMode
			problem string
		}{"loader", changed, 0o700, "interpreter:" + string(changed[start:end])})
	}
	for _, each := range cases {
		t.Run(each.name, func(t *testing.T) {
			r := newTrial(t)
			program := filepath.Join(t.TempDir(), "a program")
			if each.content != nil {
				if err := os.WriteFile(program, each.content, each.mode); err != nil {
					t.Fatal(err)
				}
			}
			r.start([]string{program})
			failure := r.failure()
			if failure.Kind != "program" || failure.More["problem"] != each.problem || failure.More["program"] != program {
				t.Errorf("%v %v", failure, failure.More)
			}
			if _, err := os.Stat(string(r.directory())); err == nil {
				t.Error("its directory is there")
			}
		})
	}
}

func TestTooManyArgumentsAreNoFaultOfTheProgram(t *testing.T) {
	r := newTrial(t)
	r.start([]string{"/bin/true", strings.Repeat("x", 3<<20)})
	if failure := r.failure(); failure.Kind != "failed" || !strings.Contains(failure.Text, "argument list too long") {
		t.Errorf("%v %v", failure.Kind, failure)
	}
}

func TestWithoutRoomNothingIsStarted(t *testing.T) {
	r := newTrial(t)
	write(t, r.service.Base.Runs(), "a file")
	r.start([]string{"true"})
	if failure := r.failure(); failure.Kind != "room" {
		t.Errorf("%v %v", failure.Kind, failure)
	}
}

func TestADirectoryIsNoProgram(t *testing.T) {
	r := newTrial(t)
	r.start([]string{t.TempDir()})
	if failure := r.failure(); failure.More["problem"] != "directory" {
		t.Errorf("%v", failure.More)
	}
}

func TestWhatHasNoFirstLineIsAScriptOfSh(t *testing.T) {
	r := newTrial(t)
	program := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(program, []byte(`echo "$1"`), 0o700); err != nil {
		t.Fatal(err)
	}
	r.start([]string{program, "a word"})
	r.clean()
	if r.text(1) != "a word\n" {
		t.Errorf("%q", r.text(1))
	}
}

func TestAnArtifactRunsOrIsMissed(t *testing.T) {
	r := newTrial(t)
	made := t.TempDir()
	script := []byte("#!/bin/sh\necho $0\n")
	if err := errors.Join(os.Mkdir(filepath.Join(made, "bin"), 0o700), os.WriteFile(filepath.Join(made, "bin", "app"), script, 0o700)); err != nil {
		t.Fatal(err)
	}
	content, err := store.ReadContent(made)
	if err != nil {
		t.Fatal(err)
	}
	r.head["artifact"], r.head["store"] = content.Hash, "cache"
	r.start([]string{"bin/app"})
	if failure := r.failure(); failure.Kind != "missing" || failure.More["artifact"] != content.Hash {
		t.Errorf("%v", failure)
	}
	place := filepath.Join(r.service.Base.Content(content.Hash), "bin")
	if err := os.MkdirAll(place, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(place, "app"), script, 0o700); err != nil {
		t.Fatal(err)
	}
	r.start([]string{"bin/app"})
	r.clean()
	if r.text(1) != filepath.Join(place, "app")+"\n" {
		t.Errorf("%q", r.text(1))
	}
	if _, err := os.Stat(filepath.Join(r.service.Base.Artifact(content.Hash), "used")); err != nil {
		t.Error(err)
	}
	// One that a run has changed is not what the next one starts.
	if err := os.WriteFile(filepath.Join(place, "app"), []byte("#!/bin/sh\necho another\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.start([]string{"bin/app"})
	if failure := r.failure(); failure.Kind != "missing" {
		t.Errorf("%v", failure)
	}
}

func TestOtherRequestsAreRefused(t *testing.T) {
	for _, change := range []map[string]any{
		{"id": "../x"}, {"id": ""}, {"grace_s": -1}, {"record": 5}, {"artifact": "../x", "store": "cache"},
		{"artifact": "/nix/store/x", "store": "nix"},
	} {
		r := newTrial(t)
		for key, value := range change {
			r.head[key] = value
		}
		r.start([]string{"true"})
		if failure := r.failure(); failure.Kind != "breach" {
			t.Errorf("%v: %v", change, failure)
		}
	}
}

func TestRecord(t *testing.T) {
	r := newTrial(t)
	r.sh(`cat "$TEST_TEMP_PATH/../record"; echo "marker=$REMOTE_RUNNER_INSTANCE"; sleep 60`)
	r.until(t, func() bool { return strings.Count(r.text(1), "marker=") == 2 })
	record, err := base.ReadRecord(r.directory())
	if err != nil {
		t.Fatal(err)
	}
	if !base.Alive(record) || record.Watcher() != os.Getpid() {
		t.Errorf("nobody watches %v", record)
	}
	pid := r.message("started")["pid"]
	if record["application"] != fmt.Sprint(pid) || record["id"] != "run-1" || record["command"] != "/bin/sh" {
		t.Errorf("%v", record)
	}
	if strings.Count(r.text(1), "marker="+record["marker"]+"\n") != 2 {
		t.Errorf("%q", r.text(1))
	}
	r.words <- `{"stop":""}`
	r.finish(`{"keep":true}`)
	if record, _ := base.ReadRecord(r.directory()); base.Alive(record) || record["exit"] != "143" {
		t.Errorf("%v", record)
	}
}

func TestManyAtOnceKeepApart(t *testing.T) {
	var all []*trial
	for i := 0; i < 40; i++ {
		r := newTrial(t)
		r.sh(`echo "$1" >"$TEST_OUTPUTS_PATH/f"; echo "$1"; setsid sleep 602 & sleep 0.2; exit "$1"`, strconv.Itoa(i))
		all = append(all, r)
	}
	for i, r := range all {
		exited := r.clean()
		if exited["status"] != float64(i) || r.text(1) != strconv.Itoa(i)+"\n" {
			t.Errorf("%d: %v %q", i, exited, r.text(1))
		}
		if runtime.GOOS == "linux" && exited["left"] != 1.0 {
			t.Errorf("%d: %v", i, exited)
		}
	}
}
