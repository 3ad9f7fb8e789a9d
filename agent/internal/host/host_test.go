package host_test

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		directory, err := os.MkdirTemp("", "agent")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(directory)
		program = filepath.Join(directory, "agent")
		build := exec.Command("go", "build", "-ldflags", "-X main.identity=0123456789abcdef", "-o", program, "remote-runner/agent")
		if words, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %s", err, words)
			return 1
		}
		return m.Run()
	}())
}

const nonce, session = "nonce-0", "00112233445566778899aabbccddeeff"

// attachment is a session's program, with the client's ends of its standard streams.
type attachment struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  io.ReadCloser
	from *bufio.Reader
}

func newBase(t *testing.T) string {
	base := filepath.Join(t.TempDir(), strings.Repeat("long-", 20)) // longer than a socket's path may be
	if err := os.MkdirAll(filepath.Join(base, "agents"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		until(t, "the session's files are removed", func() bool {
			left, _ := filepath.Glob(filepath.Join(base, "agents", session+"*"))
			for _, name := range left {
				if !strings.HasSuffix(name, ".log") {
					return false
				}
			}
			return true
		})
	})
	return base
}

func attach(t *testing.T, base string, epoch int) *attachment {
	t.Helper()
	a := &attachment{t: t, cmd: exec.Command(program, "session", base, nonce, session, strconv.Itoa(epoch))}
	a.cmd.Env = append(os.Environ(), "SSH_CONNECTION=10.0.0.1 4000 10.0.0.2 22")
	a.in, _ = a.cmd.StdinPipe()
	a.out, _ = a.cmd.StdoutPipe()
	a.cmd.Stderr = os.Stderr
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a.from = bufio.NewReader(a.out)
	t.Cleanup(func() {
		a.in.Close()
		a.out.Close()
		a.cmd.Wait()
	})
	return a
}

// says reads the program's first words behind the nonce.
func (a *attachment) says() string {
	a.t.Helper()
	for {
		line, err := a.from.ReadString('\n')
		if err != nil {
			a.t.Fatalf("no words but %q: %v", line, err)
		}
		if words, ours := strings.CutPrefix(line, nonce+" "); ours {
			return strings.TrimSpace(words)
		}
	}
}

type greeting struct {
	Protocol, Epoch, Received, UID, Bits, PID                    int
	Agent, Base, User, Sysname, Machine, Hostname, Boot, Address string
}

func (a *attachment) greeting() (g greeting) {
	a.t.Helper()
	words := a.says()
	text, found := strings.CutPrefix(words, "agent ")
	if !found || json.Unmarshal([]byte(text), &g) != nil {
		a.t.Fatalf("said %q", words)
	}
	return g
}

func (a *attachment) send(kind byte, stream uint32, number uint64, payload string) {
	raw := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	raw = binary.BigEndian.AppendUint32(append(raw, kind, 0), stream)
	raw = append(binary.BigEndian.AppendUint64(raw, number), payload...)
	if _, err := a.in.Write(raw); err != nil {
		a.t.Errorf("sending %c: %v", kind, err)
	}
}

func (a *attachment) hello(epoch int, received uint64) {
	a.send('H', 0, 0, fmt.Sprintf(`{"protocol":1,"session":%q,"epoch":%d,"received":%d,"alive_s":60,"tolerate_s":60}`, session, epoch, received))
}

// next is the kind, number and payload of the next frame.
func (a *attachment) next() (kind byte, number uint64, payload string) {
	a.t.Helper()
	header := make([]byte, 18)
	if _, err := io.ReadFull(a.from, header); err != nil {
		a.t.Fatalf("no frame: %v", err)
	}
	text := make([]byte, binary.BigEndian.Uint32(header))
	if _, err := io.ReadFull(a.from, text); err != nil {
		a.t.Fatalf("half a frame: %v", err)
	}
	return header[4], binary.BigEndian.Uint64(header[10:]), string(text)
}

// nextOf skips frames of other kinds.
func (a *attachment) nextOf(wanted byte) (uint64, string) {
	a.t.Helper()
	for {
		if kind, number, payload := a.next(); kind == wanted {
			return number, payload
		}
	}
}

// ended waits until the program has ended and nothing holds its stdout.
func (a *attachment) ended() {
	a.t.Helper()
	timer := time.AfterFunc(20*time.Second, func() { a.out.Close() })
	defer timer.Stop()
	if _, err := io.Copy(io.Discard, a.from); err != nil {
		a.t.Errorf("stdout is held: %v", err)
	}
	a.cmd.Wait()
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func lives(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // a zombie is somebody else's matter
	return err != nil || !strings.Contains(string(stat), ") Z ")
}

func TestSessionFromGreetingToBye(t *testing.T) {
	base := newBase(t)
	a := attach(t, base, 1)
	g := a.greeting()
	if g.Protocol != 1 || g.Agent != "0123456789abcdef" || g.Epoch != 1 || g.Received != 0 || g.Base != base ||
		g.UID != os.Getuid() || g.Address != "10.0.0.2" || g.Bits != strconv.IntSize || g.Machine == "" || g.User == "" {
		t.Errorf("%+v", g)
	}
	info, err := os.Stat(filepath.Join(base, "agents", session+".sock"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	a.hello(1, 0)
	a.send('O', 1, 1, `{"verb":"nothing of ours"}`)
	if _, payload := a.nextOf('X'); !strings.Contains(payload, `"error":"breach"`) {
		t.Errorf("closed with %s", payload)
	}
	a.send('B', 0, 2, "")
	a.ended()
	until(t, "the agent ends", func() bool { return !lives(g.PID) })
	if left, _ := filepath.Glob(filepath.Join(base, "agents", "*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestLaterAttachmentTakesOver(t *testing.T) {
	base := newBase(t)
	first := attach(t, base, 1)
	g := first.greeting()
	first.hello(1, 0)
	first.send('O', 1, 1, `{"verb":"nothing of ours"}`)
	number, _ := first.nextOf('X')
	second := attach(t, base, 2)
	again := second.greeting()
	if again.PID != g.PID || again.Received != 1 || again.Epoch != 2 {
		t.Errorf("%+v", again)
	}
	first.ended()
	second.hello(2, 0)
	if same, _ := second.nextOf('X'); same != number {
		t.Errorf("frame %d came again as %d", number, same)
	}
	// A program that is killed is a transport that broke, also when stdout stays open.
	second.cmd.Process.Kill()
	second.ended()
	third := attach(t, base, 3)
	if third.greeting(); !lives(g.PID) {
		t.Error("the agent is gone")
	}
	third.hello(3, number)
	third.in.Close() // as ssh does at its own end of input
	third.ended()
	until(t, "the agent ends", func() bool { return !lives(g.PID) })
}

func TestLaterEpochWithoutAgent(t *testing.T) {
	a := attach(t, newBase(t), 2)
	if words := a.says(); words != "gone" {
		t.Errorf("said %q", words)
	}
	a.ended()
}

func TestSocketOfAnotherMachine(t *testing.T) {
	base := newBase(t)
	boot := filepath.Join(base, "agents", session+".boot")
	os.WriteFile(boot, []byte("another"), 0o600)
	a := attach(t, base, 1)
	if words := a.says(); !strings.HasPrefix(words, "fault directory ") {
		t.Errorf("said %q", words)
	}
	a.ended()
	if err := os.Remove(boot); err != nil {
		t.Error(err)
	}
}

// started begins a command that starts another in a session of its own, and returns their pids and the agent's.
func started(t *testing.T, a *attachment) (agent, command, child int) {
	t.Helper()
	agent = a.greeting().PID
	a.hello(1, 0)
	a.send('O', 1, 1, "{\"verb\":\"exec\",\"argc\":3,\"cwd\":\"\",\"login_env\":true}\x00/bin/sh\x00-c\x00setsid sleep 1000 & echo $!; exec sleep 1000")
	_, payload := a.nextOf('M')
	var said struct{ Started struct{ PID int } }
	if json.Unmarshal([]byte(payload), &said) != nil || said.Started.PID == 0 {
		t.Fatalf("said %s", payload)
	}
	_, payload = a.nextOf('D')
	child, err := strconv.Atoi(strings.TrimSpace(payload))
	if err != nil {
		t.Fatal(err)
	}
	return agent, said.Started.PID, child
}

func parentOf(t *testing.T, pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	parent, _ := strconv.Atoi(fields[1])
	return parent
}

func TestGuardianEndsWhatADeadAgentLeft(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux: elsewhere only groups are ended")
	}
	base := newBase(t)
	a := attach(t, base, 1)
	agent, command, child := started(t, a)
	guardian := parentOf(t, agent)
	syscall.Kill(agent, syscall.SIGKILL)
	a.ended()
	for _, pid := range []int{command, child, guardian} {
		until(t, "all end", func() bool { return !lives(pid) })
	}
	later := attach(t, base, 2)
	if words := later.says(); words != "gone" {
		t.Errorf("said %q", words)
	}
}

func TestAgentGoesOnWithoutItsGuardian(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs Linux's /proc")
	}
	base := newBase(t)
	a := attach(t, base, 1)
	agent, command, child := started(t, a)
	syscall.Kill(parentOf(t, agent), syscall.SIGKILL)
	a.send('O', 3, 2, `{"verb":"nothing of ours"}`)
	a.nextOf('X')
	if !lives(command) || !lives(child) {
		t.Error("what was started has ended")
	}
	a.send('B', 0, 3, "")
	a.ended()
	for _, pid := range []int{agent, command} {
		until(t, "all end", func() bool { return !lives(pid) })
	}
	syscall.Kill(child, syscall.SIGKILL) // it left the command's group, and exec leaves that alone
}
